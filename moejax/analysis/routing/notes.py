"""What the figures of a routing analysis mean, a paragraph per chapter of its page."""

LOAD = """
How evenly the experts are loaded. The largest load is given beside the even share (MaxVio; 0% = even);
experts in use is the number of equally loaded experts with the same entropy.
"""
LABELS = """
Of all slots of the tokens of a kind (row), the percentage that goes to each expert (column).
"""
IDENTITY = """
A table from token id to expert, made from every second text, predicts the first choice in the other texts;
in parentheses, what always naming the most used expert gets. Id, previous id, position: I(expert; id) /
H(expert), the share of the choice that is known from it, 0 to 1; shuffled ids say how much of it is chance.
Spread (OpenMoE's context-independence): deviation over experts of their shares of an id's slots; at most:
if every id had experts of its own.
"""
TOKENS = """
The most frequent tokens (rows): the percentage of their slots that goes to each expert.
"""
COMPARISONS = """
Other checkpoints beside the one of this page. Same expert per id: tokens whose id has the same most
frequent expert in both (OpenMoE's early fixing; 100% = nothing moves any more). On the same text, routing
fluctuation: tokens whose set of experts or first choice changed, and the share of a token's experts that
did not stay.
"""
DROPS = """
Choices that an expert had no room for, by the part of the row that the token is in (1 = first), mean over
layers. Where room is given in the order of the tokens, the last ones lose most.
"""
LOCALITY = """
SRP: how well a router that decides for whole windows of tokens could do (F1, 1 = perfectly). Only what is
above shuffled tokens is locality; what those have above independent, even routing is imbalance. Size ratio:
experts that such a router keeps on, over the experts of a token.
"""
CACHES = """
Hit rate of a cache of experts that starts each text with its first ones. LRU and LFU look back; SCH evicts
what the next 16 tokens use least, Belady what is used last: no policy can know more. Static: every window
of 16 tokens has the best cache of its own, loaded for free (SCH of the paper's first version). Any experts:
as many that have nothing to do with the text, evenly used.
"""
SPARSITY = """
TLS: share of the experts that a token leaves alone. CLS n: share that n consecutive tokens leave alone
together, which is what verifying n drafted tokens at once saves. Reuse: share of a token's experts that the
next one takes too. In parentheses: independent, even routing.
"""
SCORES = """
Entropy of a token's scores in nats; inner balance: largest over second score, median (1 = undecided); outer
balance: share of the scores that the chosen experts have, median. In parentheses: even scores.
"""
BETWEEN = """
Mutual information of two layers: what one layer's choice tells of another's for the same token. The
diagonal is a layer with itself, the most there can be; shuffled tokens say what is chance.
"""
