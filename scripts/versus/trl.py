#!/usr/bin/env python3
"""Fine-tuning on chat in TRL's SFTTrainer beside ours: loss tokens/s, peak memory, and their ratios.

All parameters of SmolLM2-135M-Instruct, on conversations of one question and one answer (`scripts/fetch` brings
both), context 2048, on the CPU in fp32. Every contender trains a model folder with the same weights on the same
conversations in the order of the same file; AdamW, clipping and the rate are the same, and 2,048 tokens a step, but for padded
batches, whose longer steps pay less for the optimizer; nothing is computed twice (no gradient checkpointing); the loss is on the assistant's turn alone.

What counts is tokens with a target in a second of step time (forward, backward, clipping, update), the first
step left out. Each contender runs in a process of its own, in rounds one after the other; the figures are medians
over the rounds. "a CPU s": the same for each second of processor time, which a machine's other work moves less.
Peak memory is the process's peak resident set, its preparing of the data included.

  trl packed            packing=True, bfd, which switches padding_free on. That is meant for FlashAttention, which
                        needs a GPU; on a CPU it runs with sdpa: transformers finds the documents in the positions
                        and masks them by a square of booleans, so they do not see one another, yet nothing is saved
  trl wrapped           packing_strategy wrapped: cuts conversations at the row's end and lets documents see one
                        another, so attention needs no mask: easier work than everyone else's
  trl padded            no packing: as many conversations as make 2,048 tokens on average, alike in length
                        (group_by_length, which begins with long ones: some 3,500 tokens a step), padded
  transformers padded   the same batches in transformers' own Trainer, whose head computes all tokens' logits
  tessera               packed rows of 2,048 tokens, documents masked

"plain" is what a fresh install does. The others are tuned as in scripts/bench-vs-torch: oneDNN products (float32
matmul precision 'medium') and an allocator that keeps its memory.

What differs besides: packers fill their rows with other conversations, so steps hold other tokens and each
contender's own are counted. An answer ends in `<|im_end|>` and a newline for all, and both are targets; ours adds
one more target, the end of the document. TRL does not make all logits at once, and reports entropy and accuracy;
ours reports accuracy. TRL's batches are made before its clock starts.

  scripts/bench-vs-trl [--rounds 3] [--steps 4] [--threads N] [--only tessera "trl padded"]
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import KEEP_MEMORY, ROOT, measured

CONTEXT = 2048
LEARNING_RATE = 1e-5
TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
# The same text; TRL takes from the markers which tokens have loss.
MARKED_TURN = (
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}"
)
SETTINGS = {
    "task_type": "CHAT_COMPLETION",
    "learning_rate": LEARNING_RATE,
    "context_length": CONTEXT,
    "global_train_batch_size": 1,
    "device_train_microbatch_size": 1,
    "scheduler": {"name": "constant_with_warmup", "t_warmup": "0ba"},
    "shuffle": False,
    "activation_checkpointing": "none",
    "precision": "fp32",
    "devices": "cpu",
    "save_async": False,
    "save_weights_only": True,
    "hf_save_precision": "fp32",
}
# Name: how TRL's config differs, the Trainer's class, tuned or not.
CONTENDERS = {
    "trl packed, plain": ({"packing": True}, "SFTTrainer", False),
    "trl packed": ({"packing": True}, "SFTTrainer", True),
    "trl wrapped": ({"packing": True, "packing_strategy": "wrapped"}, "SFTTrainer", True),
    "trl padded": ({"train_sampling_strategy": "group_by_length"}, "SFTTrainer", True),
    "transformers padded": ({"train_sampling_strategy": "group_by_length"}, "Trainer", True),
}
OURS = "tessera"


def fetched(name: str) -> Path:
    """Where the input lies, downloaded if need be."""
    command = [sys.executable, str(ROOT / "scripts/fetch"), name]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def write_conversations(path: Path) -> None:
    """All questions about identity and all word problems, shuffled."""
    identity = json.loads(fetched("identity").read_text(encoding="utf-8"))
    problems = map(json.loads, fetched("gsm").read_text(encoding="utf-8").splitlines())
    pairs = [(row["instruction"], row["output"]) for row in identity if row["instruction"].isascii()]
    pairs += [(row["question"], row["answer"]) for row in problems]
    random.Random(17).shuffle(pairs)
    with path.open("w", encoding="utf-8") as file:
        for question, answer in pairs:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def write_run_file(folder: Path, name: str, settings: dict) -> Path:
    everything = {**SETTINGS, "train_data_path": str(folder / "chat.jsonl"), **settings}
    everything |= {"save_folder": str(folder / "runs"), "run_name": name}
    run_file = folder / f"{name}.yaml"
    run_file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in everything.items()))
    return run_file


def make_inputs(folder: Path, binary: str) -> None:
    """The conversations, and the model as a folder that both sides read: what a run leaves that changes nothing."""
    write_conversations(folder / "chat.jsonl")
    nothing = {"model": str(fetched("smollm2")), "learning_rate": 1e-30, "context_length": 128, "training_duration": "1ba"}
    run_file = write_run_file(folder, "export", nothing)
    measured([binary, "train", str(run_file)], {})
    (folder / "runs/export/huggingface/ba1").rename(folder / "model")


def tokenizer_with_marks(model_folder: Path):
    """The model's tokenizer, its template marked; the rendered text must stay the same."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    before = tokenizer.apply_chat_template(messages, tokenize=False)
    tokenizer.chat_template = tokenizer.chat_template.replace(TURN, MARKED_TURN)
    if "{% generation %}" not in tokenizer.chat_template or tokenizer.apply_chat_template(messages, tokenize=False) != before:
        raise SystemExit("bench-vs-trl: SmolLM2's chat template is not the one that is marked here")
    return tokenizer


def conversations_of_a_step(folder: Path, tokenizer) -> int:
    """How many conversations have as many tokens as a packed row."""
    rows = [json.loads(line)["messages"] for line in (folder / "chat.jsonl").read_text(encoding="utf-8").splitlines()]
    lengths = [len(ids) for ids in tokenizer.apply_chat_template(rows, return_dict=True)["input_ids"]]
    return round(CONTEXT / statistics.mean(lengths))


def run_trl(folder: Path, name: str, steps: int, threads: int) -> dict:
    """Trains in this process and returns loss tokens/s, what a step held, and the losses."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    different, trainer_class, tuned = CONTENDERS[name]
    torch.set_num_threads(threads)
    if tuned:
        torch.set_float32_matmul_precision("medium")
    tokenizer = tokenizer_with_marks(folder / "model")
    conversations = 1 if "packing" in different else conversations_of_a_step(folder, tokenizer)
    config = SFTConfig(
        output_dir=str(folder / "trl"), max_length=CONTEXT, max_steps=steps, per_device_train_batch_size=conversations,
        assistant_only_loss=True, gradient_checkpointing=False, bf16=False, use_cpu=True,
        optim="adamw_torch_fused", adam_beta2=0.95, weight_decay=0.0, max_grad_norm=1.0, learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        **different,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa")
    data = load_dataset("json", data_files=str(folder / "chat.jsonl"), split="train", cache_dir=str(folder / "datasets"))
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    if trainer_class == "Trainer":
        trainer = Trainer(
            model=model, args=config, train_dataset=trainer.train_dataset, data_collator=trainer.data_collator
        )
    loss_tokens, tokens, seconds, cpu_seconds = [], [], [], []
    collate = trainer.data_collator

    def counted(rows: list) -> dict:
        batch = collate(rows)
        # The model itself shifts: a row's first label is nobody's target.
        loss_tokens.append(int((batch["labels"][:, 1:] != -100).sum()))
        tokens.append(batch["input_ids"].numel())
        return batch

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.started, self.cpu_started = time.perf_counter(), time.process_time()

        def on_step_end(self, *_, **__):
            seconds.append(time.perf_counter() - self.started)
            cpu_seconds.append(time.process_time() - self.cpu_started)

    trainer.data_collator = counted
    trainer.add_callback(Clock())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return summary(loss_tokens[:steps], tokens[:steps], seconds, cpu_seconds, losses)


def summary(
    loss_tokens: list[int], tokens: list[int], seconds: list[float], cpu_seconds: list[float], losses: list[float]
) -> dict:
    """What a run comes to, the first step left out."""
    return {
        "loss_tokens_per_second": sum(loss_tokens[1:]) / sum(seconds[1:]),
        "loss_tokens_per_cpu_second": sum(loss_tokens[1:]) / sum(cpu_seconds[1:]),
        "seconds": statistics.mean(seconds[1:]),
        "loss_tokens": statistics.mean(loss_tokens[1:]),
        "tokens": statistics.mean(tokens[1:]),
        "loss": statistics.mean(losses),
    }


def measure_trl(folder: Path, name: str, arguments: argparse.Namespace) -> dict:
    """One round of a TRL contender in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--folder", str(folder)]
    command += ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    environment = {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    text, peak = measured(command, environment | ({"GLIBC_TUNABLES": KEEP_MEMORY} if CONTENDERS[name][2] else {}))
    return {**json.loads(text.splitlines()[-1]), "peak_gb": peak}


def loss_tokens_of(run_file: Path, binary: str, batch: int) -> tuple[int, int]:
    """How many tokens of a batch of ours have a target, and how many it has."""
    command = [binary, "inspect", str(run_file), "--batch", str(batch), "--json"]
    rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    tokens = [token["loss"] for row in rows for document in row["documents"] for token in document["tokens"]]
    return sum(tokens), len(tokens)


def differences(ends: list[float]) -> list[float]:
    return [end - begin for begin, end in zip([0.0, *ends], ends)]


def cpu_time(process: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watched(command: list, environment: dict, log: Path) -> tuple[list[float], float]:
    """Runs ours to its end: its processor time at each line of its log, and its peak resident set in GB."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        times: list[float] = []
        while True:
            lines = log.read_text().count("\n") if log.exists() else 0
            times += [cpu_time(process.pid)] * (lines - len(times))
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output.read()[-3000:]}")
    return times, usage.ru_maxrss * 1024 / 1e9


def measure_tessera(folder: Path, arguments: argparse.Namespace, round_number: int) -> dict:
    """One round of ours: `tessera train` on the same folder and conversations."""
    name = f"round-{round_number}"
    settings = {"model": str(folder / "model"), "training_duration": f"{arguments.steps}ba"}
    run_file = write_run_file(folder, name, settings)
    log = folder / "runs" / name / "metrics.jsonl"
    environment = {"RAYON_NUM_THREADS": str(arguments.threads)}
    cpu_ends, peak = watched([arguments.binary, "train", str(run_file)], environment, log)
    # Without evaluation a run's log has one line a step.
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    seconds, cpu_seconds = differences([3600 * line["time/train"] for line in lines]), differences(cpu_ends)
    loss_tokens, tokens = zip(*(loss_tokens_of(run_file, arguments.binary, batch) for batch in range(arguments.steps)))
    losses = [line["loss/train/total"] for line in lines]
    return {**summary(list(loss_tokens), list(tokens), seconds, cpu_seconds, losses), "peak_gb": peak}


def print_table(results: dict[str, list[dict]]) -> None:
    """Medians of each contender, their ratios to ours, and ours to the best of the others."""
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()
    }
    titles = ("loss tokens/s", "least", "most", "a CPU s", "s a step", "loss tokens", "tokens", "loss", "peak GB")
    print(f"{'':21}" + "".join(f"{title:>{len(title) + 2}}" for title in titles))
    for name, row in medians.items():
        speeds = [run["loss_tokens_per_second"] for run in results[name]]
        cells = (
            f"{row['loss_tokens_per_second']:.1f}", f"{min(speeds):.1f}", f"{max(speeds):.1f}",
            f"{row['loss_tokens_per_cpu_second']:.1f}", f"{row['seconds']:.2f}", f"{row['loss_tokens']:.0f}",
            f"{row['tokens']:.0f}", f"{row['loss']:.3f}", f"{row['peak_gb']:.2f}",
        )  # fmt: skip
        print(f"{name:21}" + "".join(f"{cell:>{len(title) + 2}}" for cell, title in zip(cells, titles)))
    others = [name for name in medians if name != OURS]
    if OURS in medians and others:
        ours = medians[OURS]
        for name in others:
            other = medians[name]
            speed = ours["loss_tokens_per_second"] / other["loss_tokens_per_second"]
            work = ours["loss_tokens_per_cpu_second"] / other["loss_tokens_per_cpu_second"]
            memory = ours["peak_gb"] / other["peak_gb"]
            print(f"{OURS} / {name}: loss tokens/s {speed:.2f}, a CPU second {work:.2f}, peak memory {memory:.2f}")
        best = max(others, key=lambda name: medians[name]["loss_tokens_per_second"])
        print(f"best of the others: {best}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round, the first of which is not timed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", choices=[*CONTENDERS, OURS], default=[*CONTENDERS, OURS], metavar="NAME")
    parser.add_argument("--binary", default=str(ROOT / "target/release/tessera"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps < 2 or arguments.rounds < 1:
        parser.error("at least 2 steps and 1 round are needed")
    if arguments.one:
        print(json.dumps(run_trl(arguments.folder, arguments.one, arguments.steps, arguments.threads)))
        return
    results: dict[str, list[dict]] = {name: [] for name in arguments.only}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_inputs(folder, arguments.binary)
        for round_number in range(arguments.rounds):
            for name in arguments.only:
                print(f"round {round_number + 1} of {arguments.rounds}: {name}", file=sys.stderr)
                ours = name == OURS
                run = measure_tessera(folder, arguments, round_number) if ours else measure_trl(folder, name, arguments)
                results[name].append(run)
                print(json.dumps(run), file=sys.stderr)
    print_table(results)


if __name__ == "__main__":
    main()
