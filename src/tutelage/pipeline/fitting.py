"""The stage `fit`: a teacher is trained on the labels, from nothing or from an encoder on disk.

Several teachers of `teacher.members` are stages of their own, and `fit` puts them together.
Examples without a label are left out here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from tutelage.errors import TeacherError
from tutelage.files import hash_json, read_tensors, write_tensors
from tutelage.losses.objective import Objective, Term
from tutelage.pipeline.lessons import inside, metric_inputs, terms_of, wants
from tutelage.pipeline.material import Material, labelled_examples
from tutelage.pipeline.trimming import trimmed
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.run import Run, StageRecord
from tutelage.students import spec as students
from tutelage.students.built_in import TEACHERS
from tutelage.students.ensemble import Ensemble
from tutelage.students.spec import StudentSpec
from tutelage.teach.signals import Split
from tutelage.train.distill import Distillation
from tutelage.train.loop import History, Trainer
from tutelage.train.schedule import Schedule

if TYPE_CHECKING:
    from tutelage.teach.hf_teacher import HfEncoder

_FIT_STEPS, _FEWEST_FIT_STEPS = 7_000, 1_600
_SOLVED_VIEWS = 2  # of each example that a teacher is solved for by: untouched, and not
_APART = 1_000_003  # between the seeds of two members; the first has the recipe's own
_ENCODER_EPOCHS = {"head": 8, "all": 3}
_ENCODER_BATCH, _FEWEST_ENCODER_STEPS = 32, 300
_ENCODER_RATE = {"head": 2e-3, "all": 1e-4}


def built_in_teacher(recipe: Recipe, material: Material) -> str:
    """Return the name of the teacher that is fitted on the spot.

    Of the task's own it is the one that the recipe names, or else the first that suits: one
    that is solved for and not trained does where examples are few and nothing asks for its inside
    or its training. Raises `TeacherError` where there is none.
    """
    known = material.task.teachers
    if not known:
        raise TeacherError(
            f"the task '{material.task.name}' has no built-in teacher; name one in teacher.source"
        )
    wanted = recipe.teacher.network or next(n for n in known if _suits(n, recipe, material))
    if wanted not in known:
        raise TeacherError(
            f"teacher.network: {wanted} is no built-in teacher of the task '{material.task.name}', "
            f"which has {' and '.join(known)}"
        )
    most, count = TEACHERS[wanted].most, _labelled(material).count
    if most is not None and count > most:
        raise TeacherError(
            f"teacher.network: {wanted} takes up to {most:,} labelled examples, and there "
            f"are {count:,}: remove the key"
        )
    return wanted


def built_in_spec(recipe: Recipe, material: Material) -> StudentSpec:
    """Return the network of the teacher that is fitted on the spot."""
    network = TEACHERS[built_in_teacher(recipe, material)]
    return network.spec(recipe.teacher.width, material.knobs)


def _suits(name: str, recipe: Recipe, material: Material) -> bool:
    """Whether this built-in teacher can be fitted to the data and do what the recipe asks."""
    most, student = TEACHERS[name].most, recipe.student
    if most is None:
        return True
    terms = terms_of(recipe.distill)
    return (
        _labelled(material).count <= most
        and not wants(terms) | inside(terms)
        and not {"width", "epochs"} & recipe.teacher.model_fields_set
        and student.space != "sliced"
        and student.start != "teacher"
    )


def built_in_parameters(recipe: Recipe, material: Material) -> int:
    """Return how many parameters the teacher has that would be trained on the spot."""
    with torch.random.fork_rng(devices=[]):
        network = built_in_spec(recipe, material).build()
    return recipe.teacher.members * sum(p.numel() for p in network.parameters())


def fit_teacher(recipe: Recipe, material: Material, run: Run, progress: Progress) -> nn.Module:
    """Train the recipe's teacher on labels (once a run) and return it."""
    if recipe.teacher.fit in ("head", "all"):
        return _fit_encoder(recipe, material, run, progress, recipe.teacher.fit)
    if recipe.teacher.members > 1:
        return _fit_members(recipe, material, run, progress)
    _fit_one(recipe, material, run, progress)
    return students.load(run.file("teacher"))


def fitted_as_one(recipe: Recipe, run: Run) -> list[str]:
    """Say how good the members of a fitted teacher are alone; nothing where it is one network."""
    if recipe.teacher.members == 1:
        return []
    fitted = run.manifest["stages"]["fit"]["result"]
    alone = [member["figure"] for member in fitted["members"]]
    return [
        f"fitted from {len(alone)} seeds; alone these networks reach {min(alone):.4f} to "
        f"{max(alone):.4f} on validation"
    ]


def _fit_members(recipe: Recipe, material: Material, run: Run, progress: Progress) -> nn.Module:
    """Train several built-in teachers, each a stage, and write them as one."""
    records, folders = [], []
    for number in range(1, recipe.teacher.members + 1):
        own = recipe.model_copy(update={"seed": (recipe.seed + (number - 1) * _APART) % 2**31})
        records.append(_fit_one(own, material, run, progress, number))
        folders.append(run.file(f"teacher/members/{number}"))

    def work() -> tuple[Any, list[Path]]:
        rows = [
            {"seed": r.result["seed"], "figure": max(r.result["history"]["figure"])}
            for r in records
        ]
        network = Ensemble([students.load(folder) for folder in folders])
        spec, note = built_in_spec(recipe, material), students.note(folders[0])
        return {**records[0].result, "members": rows}, students.save(
            run.file("teacher"), spec, network, note
        )

    run.stage("fit", hash_json([record.inputs for record in records]), work)
    return students.load(run.file("teacher"))


def _fit_one(
    recipe: Recipe, material: Material, run: Run, progress: Progress, number: int = 0
) -> StageRecord:
    """Train one built-in teacher; `number`: as which member of several, 0 alone."""
    name, spec = built_in_teacher(recipe, material), built_in_spec(recipe, material)
    if TEACHERS[name].most is not None:
        return _solve_one(recipe, material, run, progress, spec, number)
    count = _labelled(material).count
    batch = min(128, max(8, count // 8))
    usual = max(8, min(60, -(-_FIT_STEPS * 128 // count)))
    epochs = recipe.teacher.epochs or max(usual, -(-_FEWEST_FIT_STEPS * batch // count))
    folder = run.file(f"teacher/members/{number}" if number else "teacher")

    def work() -> tuple[Any, list[Path]]:
        torch.manual_seed(recipe.seed)
        network = spec.build()
        history = _train(
            recipe, material, run, progress, network, number=number, batch=batch, smoothing=0.05,
            schedule={"epochs": epochs, "rate": 3e-3, "weight_decay": 5e-2, "ema": 0.99},
        )  # fmt: skip
        result = {"network": name, "epochs": epochs, "history": dataclasses.asdict(history)}
        return {**result, **_seed_of(recipe, number)}, _save(material, folder, spec, network)

    inputs = hash_json(
        [material.content, spec.to_json(), epochs, recipe.seed, recipe.threads,
         recipe.distill.precision, *metric_inputs(recipe)]
    )  # fmt: skip
    return run.stage(f"fit-{number}" if number else "fit", inputs, work)


def _seed_of(recipe: Recipe, number: int) -> dict[str, int]:
    return {"seed": recipe.seed} if number else {}


def _save(material: Material, folder: Path, spec: StudentSpec, network: nn.Module) -> list[Path]:
    unit = material.target and {"target": dataclasses.asdict(material.target)}
    return students.save(folder, spec, network, unit)


def _solve_one(
    recipe: Recipe, material: Material, run: Run, progress: Progress, spec: StudentSpec, number: int
) -> StageRecord:
    """Do what `_fit_one` does for a network that is solved for, not trained."""
    folder = run.file(f"teacher/members/{number}" if number else "teacher")
    taught = _labelled(material)

    def work() -> tuple[Any, list[Path]]:
        progress.say(f"teacher: solving for {spec.family} on {taught.count:,} examples")
        torch.manual_seed(recipe.seed)
        network: Any = spec.build()
        index, views = torch.arange(taught.count), min(_SOLVED_VIEWS, material.views)
        known = [taught.batch(index, view) for view in range(views)]
        inputs: list[Any] = [batch.inputs for batch in known]
        network.solve(torch.stack(inputs, 1), known[0].labels, material.decides)
        figure = _lesson(recipe, material, network).evaluate((network.eval(),))
        result = {"network": spec.family, "history": {"figure": [figure]}}
        return {**result, **_seed_of(recipe, number)}, _save(material, folder, spec, network)

    inputs = hash_json(
        [material.content, spec.to_json(), recipe.seed, recipe.threads, *metric_inputs(recipe)]
    )
    return run.stage(f"fit-{number}" if number else "fit", inputs, work)


def _fit_encoder(
    recipe: Recipe, material: Material, run: Run, progress: Progress, what: Literal["head", "all"]
) -> nn.Module:
    """Fit a Hugging Face encoder's new head, or all of it, to the labels; once a run."""
    from tutelage.teach.hf_teacher import parameters_to_fit

    network, path = encoder_to_fit(recipe, material), run.file("teacher/model.safetensors")
    least = -(-_FEWEST_ENCODER_STEPS * _ENCODER_BATCH // material.train.count)
    epochs = recipe.teacher.epochs or max(_ENCODER_EPOCHS[what], least)

    def work() -> tuple[Any, list[Path]]:
        parameters_to_fit(network, what)
        with network.attention_for_training():
            history = _train(
                recipe, material, run, progress, network, batch=_ENCODER_BATCH, smoothing=0.0,
                schedule={"epochs": epochs, "rate": _ENCODER_RATE[what], "ema": 0.9, "clip": 1.0},
            )  # fmt: skip
        write_tensors(path, network.state_dict())
        return {"epochs": epochs, "history": dataclasses.asdict(history)}, [path]

    inputs = hash_json(
        [material.content, students.weights_hash(network), what, epochs, recipe.seed,
         recipe.threads, recipe.distill.precision, *metric_inputs(recipe)]
    )  # fmt: skip
    run.stage("fit", inputs, work)
    network.load_state_dict(read_tensors(path)[0])
    return network.eval().requires_grad_(False)


def encoder_to_fit(recipe: Recipe, material: Material) -> HfEncoder:
    """Open the recipe's Hugging Face encoder with a new head for the data's classes."""
    from tutelage.teach.hf_teacher import from_hf_folder

    what = recipe.teacher.fit
    if material.task.tokens(material.data.train) is None:
        raise TeacherError(
            f"teacher.fit: {what} is for encoders of texts. Name a classifier of these classes "
            "without fit, or fit: true without a source"
        )
    torch.manual_seed(recipe.seed)
    kept, pad = material.task.tokens(material.data.train) or (None, 0)
    return from_hf_folder(
        Path(str(recipe.teacher.source)), material.outputs, kept=kept, pad=pad, fresh_head=True,
        trust_code=False,
    )  # fmt: skip


def _labelled(material: Material) -> Split:
    assert material.labelled is not None  # with_classes refuses to fit where it is
    return material.labelled


def _train(
    recipe: Recipe, material: Material, run: Run, progress: Progress, network: nn.Module, *,
    batch: int, smoothing: float, schedule: dict[str, Any], number: int = 0,
) -> History:  # fmt: skip
    trainer = Trainer(
        _lesson(recipe, material, network, batch=batch, smoothing=smoothing),
        Schedule(seed=recipe.seed, precision=recipe.distill.precision, **schedule),
        checkpoint=run.file(f"checkpoints/teacher{f'-{number}' * bool(number)}.safetensors"),
        progress=progress,
        label=f"Training teacher {number} of {recipe.teacher.members}"
        if number
        else "Training the teacher",
    )
    return trainer.train()


def _lesson(
    recipe: Recipe, material: Material, network: nn.Module, *, batch: int = 1, smoothing: float = 0
) -> Distillation:
    """Return what a teacher is trained on, and judged by: labels alone."""
    term = Term(name="cross_entropy", weight=1.0, options={"label_smoothing": smoothing})
    if material.decides == "values":
        term = Term(name="value_error", weight=1.0)
    taught, held = _labelled(material), material.validation
    if material.task.tokens(material.data.train) is not None:
        known = labelled_examples(material.data.train)
        taught, held = trimmed(taught, known), trimmed(held, material.data.validation)
    return Distillation(
        network,
        Objective((term,)),
        taught,
        held,
        classes=material.outputs,
        decides=material.decides,
        views=1_000_000,  # nothing is cached here, so every epoch may see a new view
        batch=batch,
        seed=recipe.seed,
        metric=recipe.metric,
    )
