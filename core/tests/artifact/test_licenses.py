"""SPDX expressions, and the Hub's names for them."""

import pytest
from apr_train.artifact.provenance import hub_license, spdx_expression
from apr_train.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("mit", "MIT"),
        ("apache-2.0", "Apache-2.0"),
        ("mit or apache-2.0", "MIT OR Apache-2.0"),
        ("(MIT AND CC-BY-4.0) OR ISC", "(MIT AND CC-BY-4.0) OR ISC"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "GPL-2.0-only WITH Classpath-exception-2.0"),
        ("LicenseRef-my-terms", "LicenseRef-my-terms"),
        ("PSF-2.0", "PSF-2.0"),
    ],
)
def test_expressions_are_spelled_as_spdx_has_them(given, canonical):
    assert spdx_expression(given, where="--license") == canonical


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Apache 2.0", "did you mean Apache-2.0?"),
        ("Apache-2", "did you mean Apache-2.0?"),
        ("mitt", "did you mean MIT?"),
        ("MIT OR Apache-2", "did you mean Apache-2.0?"),
        ("proprietary stuff of ours", "LicenseRef-NAME"),
        ("MIT AND", "as in MIT"),
        ("(MIT", "as in MIT"),
        ("MIT, BSD", "as in MIT"),
        ("LicenseRef-", "not an SPDX"),
        ("GPL-2.0-only WITH MIT", "SPDX"),
        ("", "empty"),
    ],
)
def test_what_spdx_does_not_know_is_refused_with_the_closest(given, message):
    with pytest.raises(ConfigError) as caught:
        spdx_expression(given, where="--license")
    assert message in str(caught.value)
    assert "--license" in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", ("mit", None)),
        ("GPL-3.0-only", ("gpl-3.0", None)),
        ("ODC-By-1.0", ("odc-by", None)),
        ("MIT OR Apache-2.0", ("other", "mit-or-apache-2.0")),
        ("LicenseRef-my-terms", ("other", "licenseref-my-terms")),
    ],
)
def test_the_hub_is_told_in_its_own_words(expression, expected):
    assert hub_license(expression) == expected
