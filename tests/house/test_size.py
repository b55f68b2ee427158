"""Files, functions and signatures stay small enough to be read at once."""

import ast

from tests.house import tree

FILE_LINES, FUNCTION_LINES, PARAMETERS, NESTING = 300, 40, 6, 3
# Every operand and result of a kernel is a parameter of it.
KERNEL_FILE_LINES, KERNEL_FUNCTION_LINES, KERNEL_PARAMETERS = 500, 120, 14
# What is larger, and how large; a number may only fall, and an entry that is no longer needed goes.
EXCEPTIONS: dict[str, int] = {
    "moejax/model/forward.py:forward()": 7,
    "moejax/model/stack.py:apply()": 7,
    "moejax/model_io.py:load()": 7,  # a public door; all but one are options, by keyword alone
    "moejax/model_io.py:save()": 7,
    "moejax/training/data/records.py:_json_lines{}": 4,
    "moejax/training/objective.py:value_and_grad()": 7,
    "moejax/training/step.py:train_step()": 8,
}

_BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(function) -> int:
    """Lines with code from the `def` on, without its docstring, comments and blank lines."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    lines = {line for node in [function.args, *body] for child in ast.walk(node) for line in _span(child)}
    return len(lines | {function.lineno})


def parameters(function) -> int:
    """Parameters that a caller can name, without self."""
    args = function.args
    names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def nesting(node: ast.AST, depth: int = 0) -> int:
    """Depth of the deepest block; an elif is no deeper than its if, an inner function is apart."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and [child] == node.orelse
        deepest = max(deepest, nesting(child, depth + (isinstance(child, _BLOCKS) and not is_elif)))
    return deepest


def sizes() -> dict[str, tuple[int, int, str]]:
    """Per thing that has a limit: its size, the limit, and the unit."""
    found = {}
    for path in tree.sources():
        kernel = path.startswith(("pallas_kernels/", "tests/pallas_kernels/"))
        text = (tree.ROOT / path).read_text(encoding="utf-8")
        found[path] = (text.count("\n"), KERNEL_FILE_LINES if kernel else FILE_LINES, "lines")
        limit = KERNEL_FUNCTION_LINES if kernel else FUNCTION_LINES
        most = KERNEL_PARAMETERS if kernel else PARAMETERS
        for node in ast.walk(tree.parsed(path)):
            if isinstance(node, _FUNCTIONS):
                where = f"{path}:{node.name}"
                found[where] = (code_lines(node), limit, "lines of code")
                found[f"{where}()"] = (parameters(node), most, "parameters")
                found[f"{where}{{}}"] = (nesting(node), NESTING, "levels of blocks")
    return found


def test_everything_is_small():
    large = [
        f"{what}: {size} {unit}, at most {limit}"
        for what, (size, limit, unit) in sizes().items()
        if size > max(limit, EXCEPTIONS.get(what, 0))
    ]
    assert not large, "split first, in a commit of its own:\n" + "\n".join(large)


def test_exceptions_only_shrink():
    found = sizes()
    for what, allowed in EXCEPTIONS.items():
        size, limit, unit = found.get(what, (0, 0, "lines"))
        assert size == allowed > limit, f"{what} has {size} {unit} now: write that, or delete the exception"


def test_the_rulers_by_hand():
    text = '''
def f(self, a, *, b=1):
    """Two
    lines."""
    # why
    if a:

        for _ in b:
            pass
    elif b:
        return [
            a,
        ]
'''
    function = ast.parse(text).body[0]
    assert code_lines(function) == 8
    assert parameters(function) == 2
    assert nesting(function) == 2


def _span(node: ast.AST):
    return (node.lineno, node.end_lineno) if hasattr(node, "lineno") else ()
