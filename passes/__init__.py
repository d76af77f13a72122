"""The compiler pass: finds nodes whose weight can be factorized and rewrites them. Graph knowledge only, no numerics.

`find_sites` walks a model's skeleton (the proto without weight bytes) and gives `Site`s and `Skipped` nodes;
`expand_calls` writes the calls of model-local functions out before, and `fold_calls` puts back those in which nothing
was replaced; `select_sites` narrows them by globs, `offer_forms` what they may be written in; `rewrite` puts smaller
nodes where the chosen sites were and leaves all else byte for byte. `find_products` finds linear nodes that meet with
nothing in between, `write_products` writes them as one; `find_followers` says what has to follow a site's outputs into
another order, `reorder_tensors` makes it follow. One module per operator holds its legality and its nodes together
(`RULES`).
"""

if __name__ == "passes":
    raise ImportError("this folder is the package lowrank_onnx.passes: write 'from lowrank_onnx import passes'")

from lowrank_onnx.passes.find_sites import find_sites
from lowrank_onnx.passes.functions import Expansion, expand_calls, fold_calls
from lowrank_onnx.passes.permutation import find_followers, reorder_tensors
from lowrank_onnx.passes.products import Apart, Product, find_products, linear_outputs
from lowrank_onnx.passes.rewrite import Rewrite, rewrite
from lowrank_onnx.passes.rule import Rule
from lowrank_onnx.passes.rules import RULES
from lowrank_onnx.passes.select_sites import select_sites
from lowrank_onnx.passes.shared import offer_forms
from lowrank_onnx.passes.write_products import ProductTensor, product_tensors, write_products

__all__ = [
    "RULES",
    "Apart",
    "Expansion",
    "Product",
    "ProductTensor",
    "Rewrite",
    "Rule",
    "expand_calls",
    "find_followers",
    "find_products",
    "find_sites",
    "fold_calls",
    "linear_outputs",
    "offer_forms",
    "product_tensors",
    "reorder_tensors",
    "rewrite",
    "select_sites",
    "write_products",
]
