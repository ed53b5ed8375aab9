"""Model configs: frozen, validated, with Hugging Face's field names; families subclass them."""

from apr_train.config.base import ModelConfig
from apr_train.config.decoder import DecoderConfig
from apr_train.config.encoder import EncoderConfig
from apr_train.config.rope_scaling import RopeScaling

__all__ = ["MISSING_FIELD", "DecoderConfig", "EncoderConfig", "ModelConfig", "RopeScaling"]
