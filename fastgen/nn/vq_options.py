"""What the quantiser layers accept by name but refuse with any value other than the default."""

VECTOR_QUANTIZE = {
    "codebook_diversity_loss_weight": 0.0,
    "codebook_diversity_temperature": 100.0,
    "stochastic_sample_codes": False,
    "sample_codebook_temp": 1.0,
    "straight_through": False,
    "directional_reparam": False,
    "directional_reparam_variance": 5e-3,
    "sync_affine_param": False,
    "vq_bridge": None,
    "in_place_codebook_optimizer": None,
    "manual_in_place_optimizer_update": False,
    "affine_param": False,
    "affine_param_batch_decay": 0.99,
    "affine_param_codebook_decay": 0.9,
    "sync_update_v": 0.0,
}
VECTOR_QUANTIZE_FORWARD = {
    "topk": None,
    "sample_codebook_temp": None,
    "codebook_transform_fn": None,
    "accum_ema_update": False,
}
RESIDUAL_VQ = {
    "diveq": False,
    "implicit_neural_codebook": False,
    "mlp_kwargs": {},
    "beam_size": None,
    "eval_beam_size": None,
    "beam_score_quantizer_weights": None,
}
RESIDUAL_VQ_FORWARD = {"sample_codebook_temp": None, "beam_size": None}


def refuse_others(layer: str, defaults: dict, given: dict) -> None:
    """NotImplementedError for the first option in `given` that differs from its default."""
    for name, default in defaults.items():
        value = given[name]
        if value is not default and value != default:
            raise NotImplementedError(
                f"fastgen.nn.{layer}: {name} must be {default!r}, got {value!r}; there is no fused "
                "form of it here: leave it out, or keep vector_quantize_pytorch for this layer"
            )


def refuse(layer: str, argument: str, expected: str, got, remedy: str) -> None:
    raise ValueError(f"fastgen.nn.{layer}: {argument} {expected}, got {got}; {remedy}")
