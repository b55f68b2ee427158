"""The letters behind every array name (`x_BTD`) and every einsum equation.

A lower-case letter is one device's shard of that dim (`w_eDF`).

B  batch rows            T  positions computed      S  positions attended
N  tokens, flat          R  routed rows, flat       J  plan rows of a serving step
D  model width           F  ffn or expert width     V  vocabulary
H  query heads           G  key/value heads         A  head width
E  experts               K  expert slots per token  L  layers
Q  cache slots           M  operating points        P  devices
W  a router's own width   C  head width of values     Z  latent width of attention
"""
