"""What each measure is called in tables, what it says, and which way is better.

`higher_is_better` is None where neither way is: a null model, or how far a leap went. For collapse
measures lower means more collapsed, which is the sense the field sorts by.

>>> NC1.name, NC1.higher_is_better
('nc1', False)
"""

from collections.abc import Callable
from typing import NamedTuple

from robust_nc.geometry.moments import Moments


class Measure(NamedTuple):
    """A registered measure: its column name, which way is better, a heading, one sentence.

    One with `compute` becomes a row of every tap, condition and grouping by being registered: a
    function of the moments of the features, None where it is undefined.
    """

    name: str
    higher_is_better: bool | None
    label: str
    description: str
    compute: Callable[[Moments], float | None] | None = None


NC1 = Measure("nc1", False, "NC1", "Tr(Sigma_W Sigma_B^+) / K'")
NC1_UNSCALED = Measure("nc1_unscaled", False, "NC1 (unscaled)", "Tr(Sigma_W Sigma_B^+)")
NC1_TRACE = Measure("nc1_trace", False, "NC1 (trace)", "tr Sigma_W / tr Sigma_B")
NC1_TRACE_DEBIASED = Measure(
    "nc1_trace_debiased", False, "NC1 (trace, debiased)", "trace ratio without sampling noise"
)
CDNV = Measure("cdnv", False, "CDNV", "class-distance normalised variance, mean over pairs")
VCI = Measure("vci", False, "VCI", "variability collapse index: 0 is full collapse")
NC2_NORM = Measure("nc2_norm", False, "NC2 norm", "spread of the norms of the centred means")
NC2_NORM_W = Measure("nc2_norm_w", False, "NC2 norm (w)", "nc2_norm, centred at the global mean")
NC2_NORM_HEAD = Measure("nc2_norm_head", False, "NC2 norm (head)", "nc2_norm of the head's rows")
NC2_ANGLE = Measure("nc2_angle", False, "NC2 angle", "mean |cos_ij + 1/(K'-1)| of centred means")
NC2_ANGLE_W = Measure("nc2_angle_w", False, "NC2 angle (w)", "nc2_angle, centred at global mean")
NC2_ANGLE_HEAD = Measure("nc2_angle_head", False, "NC2 angle (head)", "nc2_angle of head's rows")
NC2_TARGET = Measure("nc2_target", False, "NC2 target", "mean |cos_ij - S_ij|, both centred")
NC2_TARGET_RAW = Measure(
    "nc2_target_raw", False, "NC2 target (raw)", "mean |cos_ij - S_ij|, neither centred"
)
NC2_GRAM = Measure("nc2_gram", False, "NC2 Gram", "distance of the Gram matrix from a simplex's")
NC2_GRAM_W = Measure("nc2_gram_w", False, "NC2 Gram (w)", "nc2_gram, centred at the global mean")
NC2_GRAM_HEAD = Measure("nc2_gram_head", False, "NC2 Gram (head)", "nc2_gram of the head's rows")
NC3 = Measure("nc3", False, "NC3", "squared distance of head and means, centred, of unit norm")
NC3_W = Measure("nc3_w", False, "NC3 (w)", "nc3, means centred at the global mean")
NC3_RAW = Measure("nc3_raw", False, "NC3 (raw)", "nc3, neither centred")
NC4 = Measure("nc4", False, "NC4", "rate at which nearest vertex and network disagree")
NCC = Measure("ncc", True, "NCC", "accuracy of the nearest-vertex classifier")

NC1_CLEANREF = Measure(
    "nc1_cleanref", False, "NC1 (clean vertices)", "nc1 around the clean class means"
)
NC1_LEAP_NULL = Measure(
    "nc1_leap_null", None, "NC1 (leap null)", "nc1 with every example put exactly on its vertex"
)
NC1_TRACE_LEAP_NULL = Measure(
    "nc1_trace_leap_null", None, "NC1 trace (leap null)", "nc1_trace of the leap null"
)
NC1_LANDED = Measure("nc1_landed", False, "NC1 (landed)", "nc1 grouped by nearest clean vertex")
NC1_TRACE_LANDED = Measure(
    "nc1_trace_landed", False, "NC1 trace (landed)", "nc1_trace grouped by nearest clean vertex"
)
NC1_LANDED_NULL = Measure(
    "nc1_landed_null", None, "NC1 (landed, null)", "nc1_landed of isotropic noise of equal variance"
)
NC1_TRACE_LANDED_NULL = Measure(
    "nc1_trace_landed_null", None, "NC1 trace (landed, null)", "trace form of nc1_landed_null"
)

LEAP_RATE = Measure("leap_rate", False, "leap rate", "share of examples at another vertex")
MEAN_ROW_ENTROPY = Measure(
    "mean_row_entropy", None, "leap entropy", "entropy in nats of where leaps from a vertex go"
)
NEAREST_SHARE = Measure(
    "nearest_share", None, "nearest share", "share of leaps onto the neighbouring vertex"
)
LANDING_FRACTION = Measure(
    "landing_fraction", False, "landing fraction", "mean way along the edge, 1 is the whole edge"
)
LANDING_MEDIAN = Measure("landing_median", False, "landing median", "median of landing fractions")
OFF_EDGE = Measure("off_edge", None, "off edge", "mean distance from the edge, in edge lengths")
T_SELECTED = Measure(
    "t_selected", None, "t (selected)", "mean way towards the vertex where a leap ended"
)
LANDED = Measure("landed", None, "landed", "share of leaps that end as near as clean examples lie")
DISPLACEMENT = Measure("displacement", False, "displacement", "mean move over mean edge length")
AGREEMENT = Measure("agreement", None, "agreement", "share of leaps or flips that are both")

SEVERITY = Measure("severity", False, "severity", "mean class distance that leaps go")
SEVERITY_NULL = Measure(
    "severity_null", None, "severity (null)", "severity of leaps to any other class alike"
)
RETURN_RATE = Measure(
    "return_rate", None, "return rate", "share of leaps that noise on top of the attack undoes"
)
LEAP_RATE_CLASS = Measure("leap_rate_class", False, "leap rate (class)", "leap rate of class i")
NC1_CLASS = Measure("nc1_class", False, "NC1 (class)", "what class i contributes to nc1")
VULNERABILITY_CORRELATION = Measure(
    "vulnerability_correlation",
    None,
    "vulnerability",
    "rank correlation over classes of clean nc1 and leap rate",
)
COLLAPSE_RADIUS = Measure(
    "collapse_radius", True, "collapse radius", "smallest eps with leap rate 0.1 on test"
)
COLLAPSE_RADIUS_LOW = Measure(
    "collapse_radius_low", None, "collapse radius, low", "where the 95 % upper bound crosses"
)
COLLAPSE_RADIUS_HIGH = Measure(
    "collapse_radius_high", None, "collapse radius, high", "where the 95 % lower bound crosses"
)
ALIGNMENT_ANGLE = Measure(
    "alignment_angle", False, "angle", "mean angle of clean and attacked means, degrees"
)
ALIGNMENT_ANGLE_CLASS = Measure(
    "alignment_angle_class", False, "angle (class)", "that angle for class i, degrees"
)
ALIGNMENT_DISTANCE = Measure(
    "alignment_distance", False, "distance of means", "mean move of class means over their norm"
)
PROCRUSTES = Measure(
    "procrustes", False, "Procrustes", "misfit of the two simplices, turned freely"
)
ETF_DISTANCE = Measure("etf_distance", False, "ETF distance", "squared distance to the nearest ETF")
NCC_CLEAN = Measure("ncc_clean", True, "NCC (clean)", "ncc on the adaptively attacked examples")
NCC_TRANSFERRED = Measure(
    "ncc_transferred", True, "NCC (transferred)", "ncc under the attack on the network"
)
NCC_ADAPTIVE = Measure("ncc_adaptive", True, "NCC (adaptive)", "ncc under an attack on itself too")
ROBUST_ACCURACY = Measure(
    "robust_accuracy", True, "robust accuracy", "the network's own, beside ncc_adaptive"
)
TRAJECTORY_T = Measure("trajectory_t", None, "t over steps", "mean way along the edge at step i")
TRAJECTORY_OFF = Measure(
    "trajectory_off", None, "off the simplex", "mean distance from the vertices' hull at step i"
)
AGOP_TRACE = Measure("agop_trace", False, "tr AGOP", "mean squared norm of the input Jacobian")
AGOP_EIGENVALUE = Measure("agop_eigenvalue", None, "AGOP eigenvalue", "eigenvalue i of the AGOP")
NFM_AGOP = Measure("nfm_agop", None, "NFM ~ AGOP", "Pearson over entries, W^T W and AGOP")
NFM_AGOP_ROOT = Measure("nfm_agop_root", None, "NFM ~ AGOP^1/2", "the same with AGOP^(1/2)")
NFM_AGOP_CENTRED = Measure(
    "nfm_agop_centred", None, "NFM ~ AGOP (centred)", "nfm_agop with W minus its initial value"
)
NFM_AGOP_ROOT_CENTRED = Measure(
    "nfm_agop_root_centred", None, "NFM ~ AGOP^1/2 (centred)", "nfm_agop_root with W - W_0"
)
SVD_NC1_FEATURES = Measure("svd_nc1_features", False, "NC1 of x", "nc1_trace of a layer's input")
SVD_NC1_LINEAR = Measure("svd_nc1_linear", False, "NC1 of S V^T x", "after the linear map alone")
SVD_NC1_ACTIVATION = Measure(
    "svd_nc1_activation", False, "NC1 of s(W x)", "after its activation as well"
)
MEMORIZATION = Measure(
    "memorization", False, "memorization", "mean distance of corrupted examples from own class mean"
)
MEMORIZATION_RELATIVE = Measure(
    "memorization_relative",
    False,
    "memorization (relative)",
    "memorization over the mean distance between vertices",
)
CORRUPTION_BIAS = Measure(
    "corruption_bias",
    True,
    "corruption bias",
    "way left from a corrupted example to its assigned vertex",
)
MEMORISED_WAY = Measure(
    "memorised_way", False, "memorised way", "mean way from original to assigned vertex, 1 is all"
)
MEMORISED_OFF_EDGE = Measure(
    "memorised_off_edge",
    None,
    "memorised off edge",
    "mean distance from that edge, in edge lengths",
)
MEMORISED = Measure(
    "memorised", False, "memorised", "share of wrongly labelled examples that are fitted"
)
DILATION = Measure("dilation", False, "dilation", "trace NC1 of the test features")
LEAP_RATE_MEMORISED = Measure(
    "leap_rate_memorised",
    False,
    "leap rate (memorised)",
    "leap rate of wrong labels that are fitted",
)
LEAP_RATE_WRONG = Measure(
    "leap_rate_wrong",
    False,
    "leap rate (wrong label)",
    "leap rate of examples trained on a wrong label",
)
LEAP_RATE_RIGHT = Measure(
    "leap_rate_right",
    False,
    "leap rate (right label)",
    "leap rate of examples trained on the right label",
)
CORRUPTION_ACCURACY = Measure(
    "corruption_accuracy", True, "corruption acc.", "mean accuracy over corruptions and severities"
)
MCE = Measure("mce", False, "mCE", "mean corruption error, not divided by a baseline's")
MISTAKE_SEVERITY = Measure(
    "mistake_severity", False, "mistake severity", "mean class distance of the mistakes"
)
INDUCED_SEVERITY = Measure(
    "induced_severity",
    False,
    "induced severity",
    "mistake severity where the clean prediction is right",
)
HD_1 = Measure("hd_1", False, "HD@1", "mean class distance of the prediction")
HD_5 = Measure("hd_5", False, "HD@5", "mean class distance of the 5 likeliest classes")
HD_20 = Measure("hd_20", False, "HD@20", "mean class distance of the 20 likeliest classes")
HIER_NDCG = Measure(
    "hier_ndcg", True, "hierarchical NDCG", "how well logits rank classes by distance; 1 is best"
)
