"""The stage `plan`: the budget, the candidates, their short distillations, the choice."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tutelage import __version__
from tutelage.devices import HOST, Device, device_limits
from tutelage.errors import InfeasibleError, RecipeError, StudentError
from tutelage.export.artifact import ArtifactMeta
from tutelage.files import hash_json, read_tensors, write_json
from tutelage.measure.energy import POWERCAP, read_rapl
from tutelage.passes import Forward, call
from tutelage.pipeline.checking import fixed_spec, shrinks_of
from tutelage.pipeline.elastic import judged_cuts
from tutelage.pipeline.inheriting import from_nearest, from_teacher
from tutelage.pipeline.material import Material
from tutelage.pipeline.slicing import of_all_spaces
from tutelage.pipeline.starting import first_student
from tutelage.pipeline.teaching import Taught
from tutelage.pipeline.tokens import token_families
from tutelage.pipeline.trials import Search, scores_of, trial_file
from tutelage.plan import SPACES, Candidate, plan_json
from tutelage.plan.candidate import most_parameters, shaken, stand_in, weigh, weighed
from tutelage.plan.costs import Costing, Precision
from tutelage.plan.refusal import infeasible, shortfall
from tutelage.progress import Progress
from tutelage.recipe import Recipe
from tutelage.records import Limit
from tutelage.run import Run
from tutelage.students.spec import StudentSpec
from tutelage.teach.teachers import from_function

_UNKNOWN = float("inf")  # bytes of a teacher that was not read yet
# Slices that begin with the teacher's weights for every budget: of texts one lost 6 points by less
# (benchmarks/RESULTS.md, twelve budgets of texts); of vision transformers it was not measured.
_SLICED_ANEW = ("encoder", "vit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The student to teach: its spec (None for one's own function) and how to build it fresh.

    `warm` are the weights after the short trial, for pairing; None when there was none. `forward`
    is how the network is called. `weights` are those that a slice takes over, and `weights_of`
    says from which network. `stays` is how much of a student taught before it is, by parameters,
    where it begins with a slice of one. `space` is where it was found. `macs` are the
    multiply-accumulates of one example, where they bound how long it is taught: of token models.
    """

    spec: StudentSpec | None
    network: nn.Module
    parameters: int
    warm: Path | None
    forward: Forward = call
    weights: dict[str, Tensor] | None = None
    weights_of: str = "the teacher"
    stays: float | None = None
    space: str = "compact"
    macs: float | None = None


def budget_of(recipe: Recipe, device: Device, teacher_bytes: float) -> tuple[Limit, ...]:
    """Return the recipe's limits and the device's own; with none, a tenth of the teacher's bytes.

    Raises `RecipeError` for a limit that the device's profile can neither measure nor predict.
    """
    limits = list(recipe.budget.limits())
    given = {limit.metric for limit in limits}
    limits += [limit for limit in device_limits(device) if limit.metric not in given]
    counted = device.name == HOST and read_rapl(POWERCAP) is not None
    estimated = device.active_power_w is not None and bool(device.throughput or device.calibration)
    if "energy_j" in given and not (counted or estimated):
        raise RecipeError(
            f"budget.energy: device '{device.name}' has no power figure, so energy can be neither "
            "measured nor estimated; add active_power to its profile, or choose another device"
        )
    if not given & {"storage_bytes", "latency_s", "energy_j", "ram_bytes"} and device.name == HOST:
        tenth = max(10_000.0, teacher_bytes / 10)
        limits = [limit for limit in limits if limit.metric != "storage_bytes"]
        limits.append(Limit(metric="storage_bytes", value=tenth, source="default: teacher / 10"))
    return tuple(limits)


def meta_of(recipe: Recipe, material: Material) -> ArtifactMeta:
    """Return what the artifact says about itself."""
    return ArtifactMeta(
        task=recipe.task,
        classes=material.classes,
        shape=material.shape,
        version=__version__,
        target=None if material.target is None else dataclasses.asdict(material.target),
        **material.task.meta(material.data, material.normalisation),
    )


def plan(
    recipe: Recipe, material: Material, taught: Taught, device: Device, limits: tuple[Limit, ...],
    run: Run, progress: Progress, *, own: nn.Module | None = None,
) -> Chosen:  # fmt: skip
    """Choose the student and write plan.json.

    `own` is a student given from Python or by `student.source`. Raises `InfeasibleError` when
    nothing fits.
    """
    costing = costing_of(recipe, material, device, limits)
    if own is not None:
        return _own_student(own, costing, material, run)
    size = taught.teacher.parameters
    found = of_all_spaces(
        recipe, costing, material, taught, run, progress,
        compact=lambda: find_candidates(recipe, costing, size, material, run, progress),
    )  # fmt: skip
    if recipe.student.start == "teacher":
        found = from_teacher(found, taught.teacher, material, run, progress)
    search = Search(
        recipe=recipe, material=material, taught=taught, costing=costing, run=run,
        progress=progress, macs=bounding_macs(material, *found),
        begun=any(candidate.weights is not None for candidate in found),
    )  # fmt: skip
    earlier = () if recipe.student.spec is not None else search.earlier(found)
    elastic = recipe.student.space == "elastic"
    if elastic:
        search.trials = judged_cuts(recipe, material, taught, found)
        search.steps_taken = dict.fromkeys(search.trials, 0)
        why = "best validation figure of the cuts of the elastic student, untaught"
    elif len(found) + len(earlier) > 1:
        search.halve(found, earlier)
        why = "best validation figure after a short distillation of each candidate"
        if earlier:
            why += "; some were tried for an earlier budget"
    else:
        why = "the only candidate"
    found, chosen = (*found, *earlier), search.best((*found, *earlier))
    rows = plan_json(
        device.name, limits, found, search.trials, chosen, why, search.steps_taken
    )  # fmt: skip
    write_json(run.file("plan.json"), rows)
    best = found[chosen]
    tried = 0 if elastic else search.steps_taken.get(chosen, 0)
    warm = run.file(trial_file(best, tried)) if tried else None
    weights, of = best.weights, "the elastic student" if elastic else "the teacher"
    stays: float | None = None
    anew = best.weights is not None and best.spec.family in _SLICED_ANEW
    if recipe.student.start == "nearest" and not elastic and not anew:
        lesson = scores_of(recipe, material, run.path).lesson
        nearest = from_nearest(run, lesson, best.spec, material, progress)
        if nearest is not None:
            weights, of = nearest.weights, f"{nearest.name}, which was taught before"
            stays = best.parameters / nearest.parameters
    network, _ = first_student(recipe, best.spec, taught, weights, of)
    return Chosen(
        spec=best.spec, network=network, parameters=best.parameters, warm=warm,
        weights=weights, weights_of=of, stays=stays, space=best.space,
        macs=bounding_macs(material, best),
    )  # fmt: skip


def bounding_macs(material: Material, *candidates: Candidate) -> float | None:
    """Return the most multiply-accumulates of one example, of token models; None for others."""
    if material.task.tokens(material.data.train) is None:
        return None
    return max(candidate.figure("macs") for candidate in candidates)


def costing_of(
    recipe: Recipe, material: Material, device: Device, limits: tuple[Limit, ...]
) -> Costing:
    """Return what every candidate is asked."""
    wanted = recipe.export.precision
    precision: Precision = "int8" if wanted == "auto" else wanted  # auto: the smallest of them
    return Costing(
        device=device, limits=limits, precision=precision, meta=meta_of(recipe, material),
        beside=material.beside, exits=recipe.student.exits is not None,
        taps=None if recipe.student.taps is None else tuple(recipe.student.taps),
    )  # fmt: skip


def find_candidates(
    recipe: Recipe, costing: Costing, teacher_parameters: int, material: Material, run: Run,
    progress: Progress,
) -> tuple[Candidate, ...]:  # fmt: skip
    """Return the students that fit (found once a run); raises `InfeasibleError` when none does.

    Nothing of the teacher but its size is needed, so this can be asked before it is trained.
    """
    if recipe.student.spec is not None:
        return (_given_spec(fixed_spec(recipe.student.spec, material), costing),)

    shrinks = shrinks_of(recipe, material)
    families = token_families(recipe, material.task.families, material.task.name)

    def search() -> tuple[Any, list[Path]]:
        progress.say(f"plan: looking for students that fit {costing.device.name}")
        found = SPACES["compact"](
            costing,
            families=families,
            given=material.knobs,
            most_parameters=most_parameters(teacher_parameters),
            count=recipe.student.candidates,
            seed=recipe.seed,
            shrinks=shrinks,
        )
        return [c.to_json() for c in found], []

    inputs = hash_json(
        [
            *costing.key(),
            recipe.student.candidates,
            teacher_parameters,
            "counted",
            *([recipe.seed] if recipe.student.candidates > 4 else []),
            *([shrinks] if shrinks != (1,) else []),
            *([families] if families != material.task.families else []),
        ]
    )
    record = run.stage("candidates", inputs, search)
    return tuple(map(Candidate.from_json, record.result))


def refuse_given(recipe: Recipe, material: Material, device: Device, own: nn.Module | None) -> None:
    """Raise `InfeasibleError` where a student that is given cannot fit, before a teacher is asked.

    The limit that a recipe without any has is a share of the teacher's bytes: it is held later.
    """
    costing = costing_of(recipe, material, device, budget_of(recipe, device, _UNKNOWN))
    if own is not None:
        _given_module(own, costing)
    elif recipe.student.spec is not None:
        _given_spec(fixed_spec(recipe.student.spec, material), costing)


def _given_spec(spec: StudentSpec, costing: Costing) -> Candidate:
    candidate = weigh(spec, costing)
    if candidate.missed:
        raise _given_misses(candidate, stand_in(spec), costing)
    return candidate


def _given_module(own: nn.Module, costing: Costing) -> Candidate:
    spec = StudentSpec(family="own", knobs=_OwnKnobs(name=type(own).__name__))
    candidate = weighed(spec, shaken(own), costing)
    if candidate.missed:
        raise _given_misses(candidate, own, costing)
    return candidate


def _own_student(own: nn.Module, costing: Costing, material: Material, run: Run) -> Chosen:
    candidate = _given_module(own, costing)
    rows = plan_json(
        costing.device.name, costing.limits, (candidate,), {}, 0, "the student that was given"
    )
    write_json(run.file("plan.json"), rows)
    return Chosen(
        spec=None, network=own, parameters=candidate.parameters, warm=None,
        macs=bounding_macs(material, candidate),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _OwnKnobs:
    name: str


def _given_misses(candidate: Candidate, network: nn.Module, costing: Costing) -> InfeasibleError:
    return infeasible(shortfall([candidate], [network], costing), costing.device, given=True)


def load_own_student(recipe: Recipe, material: Material, *, trust_code: bool) -> nn.Module | None:
    """Build the recipe's own student (`file.py:function`), or return None when it names none."""
    if recipe.student.source is None:
        return None
    file, _, name = recipe.student.source.rpartition(":")
    if not file.endswith(".py") or not name:
        raise StudentError(f"student.source is '{recipe.student.source}'; write file.py:function")
    torch.manual_seed(recipe.seed)
    return from_function(
        Path(file), name, material.outputs, trust_code, who="student", error=StudentError
    )[0]


def warm_weights(chosen: Chosen) -> nn.Module:
    """Return a copy of the student with the trial's weights where there are some, for pairing."""
    import copy

    network = copy.deepcopy(chosen.network)
    if chosen.warm is not None:
        tensors, _ = read_tensors(chosen.warm)
        network.load_state_dict(tensors)
    return network.eval()
