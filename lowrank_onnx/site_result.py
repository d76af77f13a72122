"""What became of one site, and the figures of a whole model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SiteResult:
    """What became of one site.

    Attributes
    ----------
    name, op_type, weight, dtype : the node, and the tensor that holds its weight.
    groups, in_features, out_features : the matrices of the weight (1 group unless it is a grouped convolution).
    form : how the factors were written ("pair", "conv_channel", ...), or "dense" where the site was left alone.
    rank : of the factors; None when dense.
    reason : why the site is dense; "" when it was rewritten.
    parameters_before, parameters_after : stored weights of the site, biases left out.
    macs_before, macs_after : multiply-accumulates of one run on one feed; None when no run was observed.
    relative_error : ||W - L R||_F / ||W||_F, measured; None when dense.
    spectral_error : estimate of ||W - L R||_2 / ||W||_2; None when dense.
    solver : what factorized the weight, e.g. "rsi(q=4, p=10)"; "" when dense.
    input_error : ||X (W - L R)||_F / ||X W||_F for inputs X like those that the feeds showed, as the factorization sees
        them; None when dense or not whitened.
    importance : measured relative squared error of the model's outputs per relative squared tail energy of this weight;
        None where it was not measured.
    predicted_error : the relative error of the outputs that is expected of this weight alone at its rank; None when
        dense or not measured.
    error_curve : (rank, relative error) at some ranks, rising: of what the site computes on the feeds where whitened,
        else of the weight; empty where it was not factorized.
    probes : (rank, relative error of the outputs with this weight alone at that rank) as measured, the most telling
        rank first; empty where it was not measured.
    exclude : why the site should be excluded; "" where it need not be.
    note : what the feeds could not teach about the weight, and what would help; "" where nothing is amiss.
    bytes_before, bytes_after : of the stored weight, scales and zero points of an encoded one included, biases not.
    latency_before_ms, latency_after_ms : milliseconds of one run over all sites that use the weight, as timed for these
        alone; None where that was not timed, and the latter also when dense.
    overridden : what the user asked of this weight and by which pattern; "" where nothing was.
    """

    name: str
    op_type: str
    weight: str
    dtype: str
    groups: int
    in_features: int
    out_features: int
    form: str
    rank: int | None
    reason: str
    parameters_before: int
    parameters_after: int
    macs_before: int | None
    macs_after: int | None
    relative_error: float | None
    spectral_error: float | None
    solver: str
    input_error: float | None = None
    importance: float | None = None
    predicted_error: float | None = None
    probes: tuple[tuple[int, float], ...] = ()
    exclude: str = ""
    error_curve: tuple[tuple[int, float], ...] = ()
    note: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    latency_before_ms: float | None = None
    latency_after_ms: float | None = None
    overridden: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """Figures of a whole model, before or after.

    Attributes
    ----------
    parameters : elements of all floating-point initializers of the model.
    site_parameters : weights stored for the eligible sites; a shared weight counts once.
    macs : multiply-accumulates of all eligible sites in one run on one feed; None when no run was observed.
    file_bytes : bytes of the model file and of its external data.
    """

    parameters: int
    site_parameters: int
    macs: int | None
    file_bytes: int
