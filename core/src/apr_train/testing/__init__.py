"""The conformance kit: what an author of a family calls in the plugin's own tests. See docs/tutorial.md.

    from apr_train.testing import check_family, installed_family

    def test_family_keeps_the_contract():
        check_family(installed_family("mine"))

Every check raises `ConformanceError` with all that it found; the comparisons want an independent implementation of the
same model (transformers, usually), since a name map that is wrong in both directions passes every round trip.
"""

from apr_train.testing.agreement import Agreement, compare_models, reference_config
from apr_train.testing.compare import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    ConformanceError,
    check_agreement,
    relative_error,
    relative_errors,
    tolerance_of,
)
from apr_train.testing.conformance import check_family, header_from, installed_family
from apr_train.testing.files import check_files
from apr_train.testing.float64 import compute_in_float64
from apr_train.testing.lifecycle import check_reference, check_run
from apr_train.testing.models import (
    meta_model,
    model_from_file,
    model_from_tensors,
    our_logits,
    parameter_shapes,
    random_tensors,
    randomize,
)
from apr_train.testing.report import Outcome, Report

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "Agreement",
    "ConformanceError",
    "Outcome",
    "Report",
    "check_agreement",
    "check_family",
    "check_files",
    "check_reference",
    "check_run",
    "compare_models",
    "compute_in_float64",
    "header_from",
    "installed_family",
    "meta_model",
    "model_from_file",
    "model_from_tensors",
    "our_logits",
    "parameter_shapes",
    "random_tensors",
    "randomize",
    "reference_config",
    "relative_error",
    "relative_errors",
    "tolerance_of",
]
