"""What a job calibrates and what it scores with."""

from reflow_tf.data.batches import CalibrationSet, EvaluationSet
from reflow_tf.data.loading import load_sets
from reflow_tf.errors import InputError
from reflow_tf.job_config import JobConfig
from reflow_tf.jobs.evaluation import require_label_maps
from reflow_tf.models.loading import LoadedModel


def open_sets(job: JobConfig, loaded: LoadedModel) -> tuple[CalibrationSet, EvaluationSet]:
    """The two sets that the job names, or that the weights know; no input is in both.

    Raises:
        InputError: there are none, or they cannot be used with the model.
    """
    data = job.data or loaded.default_data
    if data is None:
        raise InputError("--data is needed: only the embedded weights come with data of their own. Received: none")
    calibration, evaluation = load_sets(
        data,
        job.eval_data,
        preprocessing=loaded.preprocessing,
        num_classes=loaded.num_classes,
        positions=loaded.positions,
        class_names_path=job.class_names,
        calibration_samples=job.calibration_samples,
        batch_size=job.batch_size,
        seed=job.seed,
    )
    require_label_maps(loaded.model, loaded.positions, evaluation)
    return calibration, evaluation
