"""The teacher is asked token by token, and the slice is taught, two fifths gone at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from tutelage.errors import RecipeError
from tutelage.files import hash_json, read_tensors, write_tensors
from tutelage.losses.language_inside import apart_inside
from tutelage.losses.language_spans import apart_spans
from tutelage.losses.language_terms import LANGUAGE_LOSSES, language_terms
from tutelage.pipeline.language.cutting import cut
from tutelage.pipeline.language.inside import check_inside, inside_of
from tutelage.pipeline.language.material import LanguageMaterial
from tutelage.pipeline.language.own_words import own_losses, own_record, own_words
from tutelage.pipeline.language.planning import Slice, spec_json
from tutelage.pipeline.language.portions import Portion, portions
from tutelage.pipeline.lessons import schedule_of
from tutelage.progress import Progress
from tutelage.recipe import LossPart, Recipe
from tutelage.recipe_language import Quantization
from tutelage.run import Run
from tutelage.students.decoders.network import Decoder, DecoderSpec, Origin
from tutelage.students.decoders.sizes import parameters, steps_to
from tutelage.teach.token_signals import Speaker, TokenSignals
from tutelage.teach.torch_teacher import BF16_NOTE
from tutelage.train.block_rounding import block_rounded
from tutelage.train.inside import InsideLesson
from tutelage.train.language import LanguageLesson
from tutelage.train.loop import Trainer
from tutelage.train.spans import SpanTeacher
from tutelage.train.trackers import open_tracker

_LOSSES = {"forward_kl": 1.0, "token_cross_entropy": 1.0}  # about half each: evidence is public
_RATE, _BATCH, _MICRO_TOKENS, _CHECKPOINT = 5e-4, 8, 2_048, "300 s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """The student, its file's form, and what run.json and the report say of the lessons."""

    student: Decoder
    form: Quantization
    result: dict[str, Any]
    lessons: tuple[dict[str, Any], ...] = ()


def with_language_defaults(recipe: Recipe) -> Recipe:
    """Return the recipe with what suits language models where it says nothing itself.

    Raises `RecipeError` for a key or a loss that is of other tasks.
    """
    _refuse_others(recipe)
    usual = {"losses": _LOSSES, "rate": _RATE, "batch": _BATCH, "checkpoint": _CHECKPOINT}
    unset = {k: v for k, v in usual.items() if k not in recipe.distill.model_fields_set}
    found = recipe.model_copy(update={"distill": recipe.distill.model_copy(update=unset)})
    weights, options = losses_of(found)
    try:
        tokens, spans = apart_spans(weights)
        for name in spans:
            LANGUAGE_LOSSES[name].checked(options.get(name, {}))
        if tokens or not spans:
            language_terms(tokens, _of(tokens, options), 1.0)
    except RecipeError as error:
        raise RecipeError(f"distill.losses: {error}") from None
    if spans and (found.student.source is None or not tokens):
        raise RecipeError(_wants(spans, tokens))
    check_inside(found, tokens)
    own_losses(found, weights, options)
    return found


def _wants(spans: Mapping[str, float], tokens: Mapping[str, float]) -> str:
    name = next(iter(spans))
    if not tokens:
        return (
            f"distill.losses: {name} says how sure to be of a next token, not which one it is; "
            "name token_cross_entropy too"
        )
    return (
        f"distill.losses: {name} compares tokenizers that differ, and a slice of the teacher has "
        "the teacher's own; remove the loss, or name a student of your own in student.source"
    )


def _of(losses: Mapping[str, float], options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given for name, given in options.items() if name in losses}


def losses_of(recipe: Recipe) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the weights of the recipe's losses and their options, by name."""
    weights: dict[str, float] = {}
    options: dict[str, dict[str, float]] = {}
    for name, given in recipe.distill.losses.items():
        weight = given.weight if isinstance(given, LossPart) else given
        if weight == "auto":
            raise RecipeError(
                f"distill.losses: '{name}' of a language model needs a number as its weight: all "
                "its losses are in nats a token"
            )
        weights[name] = float(weight)
        if isinstance(given, LossPart):
            options[name] = dict(given.options)
    return weights, options


def _refuse_others(recipe: Recipe) -> None:
    for key, given in (
        ("student.spec", recipe.student.spec),
        ("student.exits", recipe.student.exits),
        ("student.space: elastic", True if recipe.student.space == "elastic" else None),
        ("budget.accuracy", recipe.budget.accuracy),
        ("data.unlabelled", recipe.data.unlabelled),
        ("measure.power_csv", recipe.measure.power_csv),
    ):
        if given is not None:
            raise RecipeError(f"{key} is not for task: causal_lm yet; remove the key")


def ask(
    recipe: Recipe, material: LanguageMaterial, run: Run, progress: Progress
) -> TokenSignals | None:
    """Ask the teacher about every learned token of the training texts, once.

    None where it has other tokens than the student: it is then asked live.
    """
    if material.theirs is not None:
        return None
    part = recipe.language
    wanted: dict[str, Any] = {
        "kind": None if part.signal == "auto" else part.signal, "kept": part.kept,
        "seed": recipe.seed,
    }  # fmt: skip
    folder, train = run.file("signals"), material.taught
    speaker = _speaker(recipe, material, progress)
    key = _teacher_key(material, speaker.bf16)
    held = TokenSignals(folder, key, train, vocabulary=speaker.vocabulary, **wanted)
    progress.say(held.describe())
    held = TokenSignals.fill(folder, key, speaker, train, progress=progress, **wanted)
    record = {
        "views": 1, "bytes": held.total_bytes, "bytes_per_example": held.bytes_per_token,
        "kind": held.kind, "keys": [held.key],
    }  # fmt: skip
    run.stage("signals", hash_json(record), lambda: (record, []))
    return held


def _speaker(recipe: Recipe, material: LanguageMaterial, progress: Progress) -> Speaker:
    """Return the teacher to ask, in the precision that the recipe says."""
    speaker = Speaker(material.decoder, bf16=recipe.teacher.precision == "bf16")
    if recipe.teacher.precision == "auto":
        moved = speaker.take_bf16(material.data.train)
        if moved is not None:
            progress.say(BF16_NOTE.format(moved))
    return speaker


def _teacher_key(material: LanguageMaterial, bf16: bool) -> str:
    how = ["bf16"] if bf16 else []
    return hash_json(["decoder", material.vocabulary, material.content, material.teacher, *how])


def teach(
    recipe: Recipe, material: LanguageMaterial, chosen: Slice, signals: TokenSignals | None,
    run: Run, progress: Progress, *, before: Taught | None = None,
) -> Taught:  # fmt: skip
    """Slice and teach step by step, each step once a run; the last one's student is returned.

    With `before` it goes on from that student, in further steps, else from the teacher.
    """
    network = material.start if before is None else before.student
    results = [] if before is None else list(before.lessons)
    steps, first = steps_to(network.spec, chosen.spec), len(results) + 1
    behind = sum(len(result["history"]["loss"]) for result in results)
    texts = portions(recipe, material, len(steps), behind=behind)
    for number, (spec, portion) in enumerate(zip(steps, texts, strict=True), first):
        kept = chosen.kept if len(steps) == 1 else None
        place = (number, len(steps) if before is None else first + len(steps) - 1)
        network, result = _step(
            recipe, material, network, spec, kept, signals, run, progress, place,
            form=chosen.form if number == place[1] else "f16",
            portion=portion,
        )  # fmt: skip
        results.append(result)
    joined = _joined(recipe, chosen.spec, results)
    return Taught(student=network, form=chosen.form, result=joined, lessons=tuple(results))


def span_teacher(recipe: Recipe, material: LanguageMaterial) -> SpanTeacher | None:
    """Return the teacher that is asked about spans of text; None where tokens are the same."""
    if material.theirs is None:
        return None
    weight = losses_of(recipe)[0]["uld"]
    return SpanTeacher(material.decoder, material.theirs, material.tokenizer, weight=weight)


def lesson_for(
    recipe: Recipe, material: LanguageMaterial, student: Decoder, signals: TokenSignals | None, *,
    seed: int, examples: int | None = None, inside: InsideLesson | None = None,
    portion: Portion | None = None,
) -> LanguageLesson:  # fmt: skip
    """Return what a student is taught, as the recipe says; `inside` is what its layers are.

    Of which text is said by `examples` or `portion`.
    """
    weights, options = losses_of(recipe)
    tokens, _ = apart_spans(apart_inside(weights)[0])
    return LanguageLesson(
        student, material.taught, material.data.validation, losses=tokens,
        options=_of(tokens, options), inside=inside, signals=signals,
        spans=span_teacher(recipe, material), batch=recipe.distill.batch,
        micro_batch=max(1, _MICRO_TOKENS // material.length), seed=seed, examples=examples,
        recompute=recipe.language.recompute,
        pieces=1 if portion is None else portion.pieces,
        first_piece=0 if portion is None else portion.first,
    )  # fmt: skip


def _step(
    recipe: Recipe, material: LanguageMaterial, before: Decoder, spec: DecoderSpec,
    kept: tuple[int, ...] | None, signals: TokenSignals | None, run: Run, progress: Progress,
    place: tuple[int, int], form: Quantization, portion: Portion,
) -> tuple[Decoder, dict[str, Any]]:  # fmt: skip
    number, of = place
    path = run.file(f"taught/step-{number}.safetensors")
    weights, options = losses_of(recipe)
    seed = recipe.seed  # the same order of texts in every step, which takes its portion of it

    def work() -> tuple[Any, list[Path]]:
        if material.given is None:
            progress.say(f"student: slicing, step {number} of {of}")
        student, start = cut(
            recipe, material, before, spec, kept, run, progress, number=number, inputs=inputs
        )
        inside = inside_of(
            recipe, material, student, (weights, options), progress, last=number == of
        )
        tracker = open_tracker(recipe.tracking, run.file("tracking"))
        with block_rounded(student, form):
            lesson = lesson_for(
                recipe, material, student, signals, seed=seed, inside=inside, portion=portion
            )
            steps = portion.count * lesson.steps()
            shared = _shared(lesson, material, progress)
            own = own_words(recipe, material, (weights, options), steps=steps, seed=seed + number)
            lesson.write_own(own)
            trainer = Trainer(
                lesson,
                schedule_of(recipe, epochs=portion.count, seed=recipe.seed),
                checkpoint=run.file("checkpoints/student.safetensors"),
                progress=progress,
                label="Teaching the student" if of == 1 else f"Teaching, step {number} of {of}",
                tracker=tracker.log if tracker else None,
            )
            home = next(material.decoder.parameters()).device
            history = dataclasses.asdict(trainer.train())
            material.decoder.to(home)  # lessons inside ask it where the student is taught
        if tracker:
            tracker.close()
        config = student.spec.config
        write_tensors(path, student.state_dict())
        origin = dataclasses.asdict(student.origin)
        tokens = [lesson.taught_in(epoch) for epoch in range(len(history["loss"]))]
        result = {"history": history, "config": config, "origin": origin, "tokens": tokens}
        result["start"] = start
        return {**result, **shared, **own_record(lesson.own, steps)}, [path]

    done = f"step-{number - 1}" if number > 1 else "whole"
    earlier = run.manifest["stages"].get(f"teach-{number - 1}", {}).get("files", {})
    inputs = hash_json(
        [
            done, earlier, signals.key if signals else _live_key(material), spec.config, form,
            list(kept or ()), weights, options, material.content,
            recipe.distill.model_dump(mode="json", exclude={"checkpoint"}),
            recipe.language.tokens, recipe.language.recompute, recipe.seed, recipe.threads, of,
            recipe.language.refit,
            dataclasses.astuple(portion),
            *([recipe.language.own.model_dump(mode="json")] if recipe.language.own else []),
            *([material.student] if material.given is not None else []),
        ]
    )  # fmt: skip
    record = run.stage(f"teach-{number}", inputs, work)
    student = Decoder(DecoderSpec(config=record.result["config"]))
    student.load_state_dict(read_tensors(path)[0])
    origin = record.result["origin"]
    student.origin = Origin(layers=tuple(origin["layers"]), numbers=tuple(origin["numbers"]))
    return student.eval(), record.result


def _live_key(material: LanguageMaterial) -> str:
    """Name a teacher that is asked live."""
    return hash_json(["live", material.teacher, material.vocabulary])


def _shared(
    lesson: LanguageLesson, material: LanguageMaterial, progress: Progress
) -> dict[str, Any]:
    """Say how much of what is learned a teacher with another tokenizer speaks of, too."""
    if lesson.spans is None:
        return {}
    found = lesson.spans.survey(material.data.train)
    progress.say(f"student: {found.describe()}")
    return {"shared": dataclasses.asdict(found)}


def _own_steps(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return in how many batches the student learned from its own words, where it did."""
    if "own_steps" not in results[0]:
        return {}
    return {
        "own_batches": {
            "own": sum(result["own_steps"] for result in results),
            "all": sum(result["steps"] for result in results),
        }
    }


def _joined(recipe: Recipe, spec: DecoderSpec, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the lessons as one, for the report: curves one after another."""
    history = dict(results[-1]["history"])
    for name in ("loss", "parts"):
        history[name] = [x for result in results for x in result["history"][name]]
    # Validation is minus a cross entropy in nats, no share: it is drawn as perplexity, or, where a
    # judgement of the student's own words is part of it, among the losses.
    held_out = [-x for result in results for x in result["history"]["figure"]]
    mixed = recipe.language.own is not None
    if mixed:
        history["parts"] = [
            {**part, "validation": x} for part, x in zip(history["parts"], held_out, strict=True)
        ]
    tokens = list(accumulate(count for result in results for count in result["tokens"]))
    history["figure"] = []
    behind = sum(len(result["history"]["figure"]) for result in results[:-1])
    history["best_epoch"] = behind + results[-1]["history"]["best_epoch"]
    return {
        "spec": spec_json(spec),
        "parameters": parameters(spec),
        "epochs": len(history["loss"]),
        "bound": f"{tokens[-1]:,} tokens in {len(results)} step{'s'[: len(results) > 1]}",
        "tokens": tokens,
        **({} if mixed else {"perplexity": [math.exp(min(x, 700.0)) for x in held_out]}),
        "steps": len(results),
        **_own_steps(results),
        **{key: results[-1][key] for key in ("shared", "start") if key in results[-1]},
        "seed": recipe.seed,
        "metric": "loss",
        "history": history,
        "weights": losses_of(recipe)[0],
    }
