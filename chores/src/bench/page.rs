//! Writes the report as a page.

use std::path::Path;

use anyhow::{Context, Result};

use super::report::{DECODER_WEIGHTS, Device, Report, Row, Stage};
use super::{POSITIONS, TOKENS};
use crate::measure::median;

pub fn page(report: &Report, output: &Path) -> Result<String> {
    let name = output
        .file_name()
        .context("--output names no file")?
        .to_string_lossy();
    let mut text = format!(
        "# Performance\n\
        \n\
        Made by `cargo xtask bench` on {}, possibly beside other work.\n\
        The figures are for this machine only, and all of them are from one run: medians of {} runs.\n\
        [{name}.json]({name}.json) has all measurements.\n\
        The server under load, beside llama.cpp's: [server-load.md](server-load.md).\n\
        \n\
        The work is Moxin-7B's, with random weights: one picture through both encoders, a prompt of\n\
        {POSITIONS} positions (256 of them the picture), then {TOKENS} tokens one at a time. The decoder has\n\
        {:.2} billion weights, and each token reads all of them: memory limits decoding, arithmetic limits\n\
        the prompt.\n\
        \n\
        ",
        report.processor,
        report.runs,
        DECODER_WEIGHTS as f64 / 1e9
    );
    text += &machine(report);
    for (device, title) in [(Device::Cpu, "On the CPU"), (Device::Gpu, "On the GPU")] {
        let rows: Vec<&Row> = report
            .rows
            .iter()
            .filter(|row| row.device == device)
            .collect();
        if !rows.is_empty() {
            text += &format!("\n## {title}\n\n");
            text += &stages(report, &rows);
            if device == Device::Cpu {
                text += &kernels(report);
            }
            text += &memory(&rows);
            text += &commands(&rows);
        }
    }
    for missing in &report.missing {
        text += &format!("\nNot measured: {missing}\n");
    }
    text += &format!(
        "\n![Tokens per second in decoding and in the prompt, by program and form of the \
         weights]({name}.svg)\n"
    );
    Ok(text)
}

fn machine(report: &Report) -> String {
    let gigabytes = |figure| report.ceiling(figure) / 1e9;
    let read: Vec<String> = report
        .machine
        .iter()
        .map(|machine| format!("{:.1}", machine.read_all / 1e9))
        .collect();
    let mut text = format!(
        "## The machine\n\n\
        | | one thread | {} threads |\n|---|---:|---:|\n\
        | reading memory | {:.1} GB/s | {:.1} GB/s |\n\
        | float32 multiply-adds in registers | {:.0} GFLOP/s | {:.0} GFLOP/s |\n",
        report.threads(),
        gigabytes(|machine| machine.read_1),
        gigabytes(|machine| machine.read_all),
        gigabytes(|machine| machine.fma_1),
        gigabytes(|machine| machine.fma_all)
    );
    if report.ceiling(|machine| machine.sgemm) > 0.0 {
        text += &format!(
            "| OpenBLAS sgemm, 290 × 4096 by 4096 × 14336 | | {:.0} GFLOP/s |\n",
            gigabytes(|machine| machine.sgemm)
        );
    }
    text += &format!(
        "\n\
        The highest of the measurements at the start, in between and at the end. Reading with all threads\n\
        was {} GB/s: on a shared machine, other minutes may be faster.\n\
        ",
        read.join(", ")
    );
    text
}

fn stages(report: &Report, rows: &[&Row]) -> String {
    let mut text = "| | weights | picture | prompt | first token | decoding | of memory's limit | \
        relative speed |\n\
        |---|---|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    let mut notes: Vec<String> = Vec::new();
    for row in rows {
        let mut mark = |stage: &Stage| match &stage.extrapolated {
            None => String::new(),
            Some(note) => {
                let at = notes
                    .iter()
                    .position(|known| known == note)
                    .unwrap_or_else(|| {
                        notes.push(note.clone());
                        notes.len() - 1
                    });
                format!(" [{}]", at + 1)
            }
        };
        let image = row.image.as_ref().map(|image| time(image.median()));
        let prefill = row.prefill.as_ref().map(|stage| {
            format!(
                "{}, {} tokens/s{}",
                time(stage.median()),
                significant(stage.rate()),
                mark(stage)
            )
        });
        let decode = row
            .decode
            .as_ref()
            .map(|stage| format!("{} tokens/s{}", significant(stage.rate()), mark(stage)));
        let cells = [
            Some(row.program.clone()),
            Some(row.scheme.clone()),
            image,
            prefill,
            row.first_token
                .as_ref()
                .map(|seconds| time(median(seconds.iter().copied()))),
            decode,
            report
                .share(row)
                .map(|share| format!("{:.1} %{}", share * 100.0, of_read(row))),
            beside_ours(row, rows),
        ];
        text += &format!("| {} |\n", cells.map(Option::unwrap_or_default).join(" | "));
    }
    text += "\n\
        *Relative speed*: how many times as fast this library is as that program, in decoding and in the\n\
        prompt, with weights of the same number of bits. *Of memory's limit*: tokens per second relative to\n\
        reading all weights of the decoder once per token";
    text += match rows.iter().any(|row| row.read.is_some()) {
        true => {
            ", at the speed\nat which memory was read just before or just after, whichever was \
             higher.\n"
        }
        false => ".\n",
    };
    for (i, note) in notes.iter().enumerate() {
        text += &format!("\n[{}] Extrapolated {note}.\n", i + 1);
    }
    text
}

/// Returns the reading speed that a row is relative to, if it was measured next to it.
fn of_read(row: &Row) -> String {
    row.read
        .map_or(String::new(), |read| format!(" of {:.1} GB/s", read / 1e9))
}

/// Returns how many times as fast ours is, in decoding and in the prompt.
fn beside_ours(row: &Row, rows: &[&Row]) -> Option<String> {
    let ours = rows
        .iter()
        .find(|ours| ours.is_ours() && ours.bits() == row.bits() && ours.bits().is_some())?;
    if row.program == ours.program && row.scheme == ours.scheme {
        return None;
    }
    let ratio = |stage: fn(&Row) -> Option<&Stage>| {
        Some(significant(stage(ours)?.rate() / stage(row)?.rate()))
    };
    Some(format!(
        "{} × and {} ×",
        ratio(|row| row.decode.as_ref())?,
        ratio(|row| row.prefill.as_ref())?
    ))
}

/// Writes the single operations: one row relative to memory's limit, a prompt's rows relative to
/// OpenBLAS.
fn kernels(report: &Report) -> String {
    if report.kernels.is_empty() {
        return String::new();
    }
    let (read, sgemm) = (
        report.ceiling(|machine| machine.read_all),
        report.ceiling(|machine| machine.sgemm),
    );
    let mut text = format!(
        "\n\
        ### Single operations\n\
        \n\
        The library's CPU operations on their own, at the sizes of a 7B decoder; `layer` is a complete\n\
        layer. Small weights stay in the CPU's cache between two measurements, so they may exceed memory's\n\
        limit.\n\
        \n\
        | | weights | size | rows | time | of {:.1} GB/s | of OpenBLAS's {:.0} GFLOP/s |\n\
        |---|---|---:|---:|---:|---:|---:|\n\
        ",
        read / 1e9,
        sgemm / 1e9
    );
    for kernel in &report.kernels {
        let per_second = |amount: f64| amount / kernel.seconds_median;
        let of = |amount: f64, ceiling: f64| {
            if amount == 0.0 || ceiling == 0.0 {
                String::new()
            } else {
                format!("{:.0} %", per_second(amount) / ceiling * 100.0)
            }
        };
        let (of_read, of_sgemm) = if kernel.rows == 1 {
            (of(kernel.bytes_read, read), String::new())
        } else {
            (String::new(), of(kernel.flop, sgemm))
        };
        text += &format!(
            "| {} | {} | {} × {} | {} | {} ms | {of_read} | {of_sgemm} |\n",
            kernel.op,
            kernel.scheme,
            kernel.input,
            kernel.output,
            kernel.rows,
            significant(kernel.seconds_median * 1e3)
        );
    }
    let prompt = |op: &str, scheme: &str| {
        report
            .kernels
            .iter()
            .find(|kernel| kernel.op == op && kernel.scheme == scheme && kernel.rows > 1)
    };
    if let Some(rest) = prompt("layer_rest", "f32") {
        let share = |scheme: &str| {
            Some(format!(
                "{:.1} % with {scheme}",
                rest.seconds_median / prompt("layer", scheme)?.seconds_median * 100.0
            ))
        };
        let shares: Vec<String> = ["int4", "int8", "bf16"]
            .into_iter()
            .filter_map(share)
            .collect();
        text += &format!(
            "\n\
            `layer_rest` is everything in a layer except products with a matrix (norms, rotary positions,\n\
            the cache, attention, SwiGLU's product, the residual stream). Of a prompt's time in a layer:\n\
            {}.\n\
            ",
            shares.join(", ")
        );
    }
    text
}

fn memory(rows: &[&Row]) -> String {
    let mut text = "\n\
        ### Loading and memory\n\
        \n\
        | | weights | on disk | loading | of the disk's speed | peak memory | estimated |\n\
        |---|---|---:|---:|---:|---:|---:|\n\
        "
    .to_owned();
    let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    for row in rows
        .iter()
        .filter(|row| row.load.is_some() || row.resident_peak.is_some())
    {
        let speed = row
            .load
            .zip(row.weight_bytes)
            .map(|(seconds, bytes)| bytes as f64 / seconds);
        let of_disk = speed.zip(row.disk).map(|(speed, disk)| {
            format!("{:.0} % of {:.2} GB/s", speed / disk * 100.0, disk / 1e9)
        });
        let cells = [
            Some(row.program.clone()),
            Some(row.scheme.clone()),
            row.weight_bytes.map(gigabytes),
            row.load.map(time),
            of_disk,
            row.resident_peak.map(gigabytes),
            row.estimated.map(gigabytes),
        ];
        text += &format!("| {} |\n", cells.map(Option::unwrap_or_default).join(" | "));
    }
    text += "\n\
        This library loads from a cold disk, which was read from start to end just before for comparison;\n\
        other programs load as they find it. Peak memory is that of the process, with everything above (for\n\
        programs that hold the whole model and do not map its file).\n\
        ";
    text
}

fn commands(rows: &[&Row]) -> String {
    let mut text = "\n### Commands\n\n```sh\n".to_owned();
    let mut known: Vec<&str> = Vec::new();
    for row in rows {
        if !known.contains(&row.command.as_str()) {
            known.push(&row.command);
            text += &format!("{}\n", row.command);
        }
    }
    text + "```\n\nThe scripts are in [chores/src/bench/peers](../chores/src/bench/peers).\n"
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 7200.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 120.0 => format!("{:.1} min", s / 60.0),
        s => format!("{} s", significant(s)),
    }
}

/// Rounds to three digits.
fn significant(value: f64) -> String {
    let decimals = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::super::report::{Ceilings, OURS};
    use super::*;

    fn row(program: &str, scheme: &str, tokens_a_second: f64, extrapolated: Option<&str>) -> Row {
        let stage = |count: usize| Stage {
            count,
            seconds: vec![count as f64 / tokens_a_second, 1e9, 1e-9],
            extrapolated: extrapolated.map(str::to_owned),
        };
        Row {
            program: program.into(),
            scheme: scheme.into(),
            device: Device::Cpu,
            command: format!("run {program}"),
            load: None,
            disk: None,
            read: None,
            weight_bytes: None,
            resident_peak: None,
            estimated: None,
            copied: None,
            image: None,
            prefill: Some(stage(290)),
            decode: Some(stage(16)),
            first_token: None,
        }
    }

    fn report(rows: Vec<Row>) -> Report {
        let machine = |read_all| Ceilings {
            threads: 2,
            read_1: 1e10,
            read_all,
            fma_1: 1e11,
            fma_all: 2e11,
            sgemm: 0.0,
        };
        let mut report = Report::new(3);
        report.machine = vec![machine(2e10), machine(3e10)];
        report.rows = rows;
        report
    }

    /// 7.985 billion weights at 4.5 bits are 4.49 GB: 30 GB/s read them 6.68 times per second.
    #[test]
    fn rates_stand_beside_what_memory_allows_and_beside_ours() {
        let report = report(vec![
            row(OURS, "INT4", 5.0, None),
            row("peer", "Q4_0", 2.5, Some("from a guess")),
            row(OURS, "BF16", 1.0, None),
        ]);
        assert!((report.share(&report.rows[0]).unwrap() - 5.0 / 6.68).abs() < 1e-3);
        // If memory was measured next to it, that speed is used.
        let measured = Row {
            read: Some(4e10),
            ..row(OURS, "INT4", 5.0, None)
        };
        assert!((report.share(&measured).unwrap() - 5.0 / 8.91).abs() < 1e-3);
        assert_eq!(of_read(&measured), " of 40.0 GB/s");
        let text = page(&report, Path::new("docs/performance")).unwrap();
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        assert!(
            line("| moxin-vlm | INT4").contains("5.00 tokens/s | 74.8 % |"),
            "{text}"
        );
        assert!(
            line("| peer | Q4_0").contains("2.50 tokens/s [1] | 37.4 % | 2.00 × and 2.00 ×"),
            "{text}"
        );
        assert!(line("| moxin-vlm | BF16").ends_with(" |  |"), "{text}");
        assert!(text.contains("[1] Extrapolated from a guess."));
    }

    #[test]
    fn a_peer_that_is_missing_is_named() {
        let mut report = report(vec![row(OURS, "INT4", 5.0, None)]);
        report.missing.push("other: no network".into());
        assert!(
            page(&report, Path::new("docs/performance"))
                .unwrap()
                .contains("Not measured: other: no network")
        );
    }
}
