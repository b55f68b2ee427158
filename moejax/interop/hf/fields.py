"""Reading a config.json so that no field of it is overlooked."""

import logging
from collections.abc import Mapping
from typing import Any

from moejax.errors import UsageError

REQUIRED = object()
# What transformers writes beside a model: how it was made, how the library is to behave, and, in files of its
# fourth version, how text is to be generated.
BOOKKEEPING = frozenset(
    """
    tokenizer_class torchscript pruned_heads tie_encoder_decoder cross_attention_hidden_size
    add_cross_attention is_decoder prefix finetuning_task use_bfloat16 tf_legacy_loss output_scores
    return_dict_in_generate bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences remove_invalid_values
    repetition_penalty suppress_tokens temperature top_k top_p typical_p
    _name_or_path architectures model_type transformers_version dtype torch_dtype use_cache
    cache_implementation initializer_range bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id
    decoder_start_token_id output_router_logits router_aux_loss_coef router_z_loss_coef aux_loss_alpha seq_aux
    output_attentions output_hidden_states return_dict use_return_dict task_specific_params id2label label2id
    problem_type is_encoder_decoder chunk_size_feed_forward pretraining_tp _attn_implementation
    _attn_implementation_autoset attn_implementation experts_implementation
    """.split()  # noqa: SIM905
)
MOST = {"num_hidden_layers": 1000}  # of a number that costs time before any tensor is looked at
MOST_WHOLE = 1 << 40  # of any other
CODE = ("auto_map", "trust_remote_code")  # names of Python files; nothing of it is ever imported


class Fields:
    """The fields of a config.json; each is taken once, and `done` refuses what nobody took."""

    def __init__(self, config: Mapping[str, Any], where: str = "config.json"):
        self._config, self.where = config, where
        self._left = {name for name in config if name not in BOOKKEEPING}
        for name in sorted(self._left.intersection(CODE)):
            logging.getLogger(__name__).warning("%s: %s names code, which is not used", where, name)
        self._left.difference_update(CODE)

    def __contains__(self, name: str) -> bool:
        return self._config.get(name) is not None

    @property
    def context(self) -> int:
        """Positions that a text may have."""
        return self.take("max_position_embeddings", int, least=1)

    def take(self, name: str, kind: type, default: Any = REQUIRED, least=None, most=None) -> Any:
        """The value of a field; null counts as absent.

        Args:
          kind: int, float, bool, str, list or dict; a whole number will do for a float.
          default: for an absent field; without it the field is required.
          least, most: of a number.

        Raises:
          UsageError: the field is missing, of another kind, or out of range.
        """
        self._left.discard(name)
        value = self._config.get(name)
        if value is None:
            if default is REQUIRED:
                raise UsageError(f"{self.where} has no {name!r}, which this family needs; add it")
            return default
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = whole if kind is int else isinstance(value, kind)
        if kind is float and whole and abs(value) <= MOST_WHOLE:
            value, fits = float(value), True
        if not fits:
            raise UsageError(f"{self.where}: {name}={value!r} is no {kind.__name__}; correct it")
        if whole:
            most = min(MOST.get(name, MOST_WHOLE), MOST_WHOLE if most is None else most)
        low = least is not None and value < least
        if low or (most is not None and value > most):
            bound = f"at least {least}" if low else f"at most {most}"
            raise UsageError(f"{self.where}: {name}={value!r} must be {bound}; correct it")
        return value

    def choose(self, name: str, choices: Mapping[str, Any], default: Any = REQUIRED) -> Any:
        """What `choices` has for the text of a field.

        Raises:
          UsageError: the field is missing, or says something else.
        """
        value = self.take(name, str, default)
        if value not in choices:
            known = ", ".join(repr(choice) for choice in choices)
            raise UsageError(f"{self.where}: {name}={value!r} is not supported; it may be {known}")
        return choices[value]

    def fixed(self, name: str, *allowed: Any) -> None:
        """A field that may be absent or null, but otherwise has one of these values.

        Raises:
          UsageError: it says something else.
        """
        self._left.discard(name)
        value = self._config.get(name)
        if value is not None and value not in allowed:
            known = " or ".join(repr(choice) for choice in allowed) or "absent"
            raise UsageError(f"{self.where}: {name}={value!r} is not supported; it must be {known}")

    def part(self, name: str) -> "Fields | None":
        """A field that holds fields of its own; its own `done` is the caller's to call."""
        value = self.take(name, dict, None)
        return None if value is None else Fields(value, f"{self.where}: {name}")

    def unused(self, *names: str) -> None:
        """Fields that cannot change what the model computes; say why beside the call."""
        self._left.difference_update(names)

    def done(self) -> None:
        """Refuse what nobody took.

        Raises:
          UsageError: a field is unknown here.
        """
        left = ", ".join(f"{name}={self._config[name]!r}" for name in sorted(self._left))
        if left:
            raise UsageError(
                f"{self.where} has fields that are not known for this family: {left}; "
                "remove them if the model does not need them"
            )
