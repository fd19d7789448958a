"""What the quantiser layers accept by name but refuse with any value other than the default."""

import numbers

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


def check_vector_quantize(layer: str, given: dict) -> None:
    """ValueError for options of `VectorQuantize` that are out of range or exclude each other."""
    for name in ("dim", "codebook_size", "heads", "kmeans_iters", "codebook_dim"):
        value = given[name]
        if name == "codebook_dim" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            refuse(layer, name, "must be a positive int", repr(value), "give a size")
    if not 0 <= given["decay"] <= 1:
        refuse(layer, "decay", "must be in [0, 1]", given["decay"], "0.8 to 0.99 are usual")
    if not given["eps"] > 0:
        refuse(layer, "eps", "must be positive", given["eps"], "1e-5 is usual")
    if given["learnable_codebook"]:
        if given["ema_update"] is not False:
            refuse(
                layer,
                "learnable_codebook",
                "must have ema_update=False beside it",
                f"ema_update={given['ema_update']}",
                "a code follows its gradient or its average",
            )
        if given["use_cosine_sim"]:
            refuse(
                layer,
                "learnable_codebook",
                "must be False with use_cosine_sim",
                True,
                "a gradient step leaves the unit sphere",
            )
    if given["accept_image_fmap"] and given["accept_3d_fmap"]:
        remedy = "choose one"
        refuse(layer, "accept_3d_fmap", "must be False with accept_image_fmap", True, remedy)
