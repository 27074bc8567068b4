//! What plugins cost: the same load through Pinion without any and with three that are more and more curious.

use super::{
    Plan, Sample,
    contender::{Bench, Kind},
    measure_running,
    report::{Measured, median, one_line},
    settle,
};
use crate::{
    error::{Result, failed},
    pgbench::Load,
    plugins,
};

const MODES: [&str; 2] = ["simple", "prepared"];
const CLIENTS: u32 = 32;

/// The rows of the table: what it is called, and the `mode` of the three plugins.
const VARIANTS: [(&str, Option<&str>); 5] = [
    ("no plugins", None),
    ("three, not subscribed", Some("unsubscribed")),
    ("three, pure verdicts", Some("pure")),
    ("three, ids only", Some("ids")),
    ("three, reading the text", Some("text")),
];

/// One run: protocol, variant, round.
pub(super) struct Round {
    mode: &'static str,
    variant: usize,
    round: u32,
    sample: Measured<Sample>,
}

/// Runs all variants in turn, each round in another order.
pub(super) fn measure(plan: &Plan, bench: &Bench<'_>) -> Result<Vec<Round>> {
    let built = plugins::build()?;
    let Some(probe) = built.iter().find(|file| file.ends_with("fixtures/probe.wasm")) else {
        return failed("the plugin that is measured was not built");
    };
    let mut rounds = Vec::new();
    for round in 1..=plan.rounds {
        for mode in MODES {
            for turn in 0..VARIANTS.len() {
                let variant = (turn + round as usize) % VARIANTS.len();
                let (name, asked) = VARIANTS[variant];
                let sections: String = asked.into_iter().flat_map(|asked| {
                    (1..=3).map(move |n| (n, asked))
                }).map(|(n, asked)| {
                    let wasm = probe.display();
                    format!("[[proxy.plugin]]\nname = \"probe-{n}\"\nwasm = \"{wasm}\"\nconfig = {{ mode = \"{asked}\" }}\n\n")
                }).collect();
                let load = Load { mode, clients: CLIENTS, seconds: plan.seconds };
                let sample = settle(
                    bench
                        .start_with(Kind::Pinion, &sections)
                        .and_then(|contender| measure_running(bench, contender, load)),
                )?;
                let said = match &sample {
                    Ok(sample) => format!("{:.0} tps", sample.outcome.tps),
                    Err(why) => format!("FAILED: {why}"),
                };
                println!("round {round}  {mode:<8}  {CLIENTS:>3} clients  {name:<24}  {said}");
                rounds.push(Round { mode, variant, round, sample });
            }
        }
    }
    Ok(rounds)
}

/// The table; empty when nothing was measured.
pub(super) fn markdown(plan: &Plan, rounds: &[Round]) -> String {
    if rounds.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n### Plugins\n\n`pgbench -S`, {CLIENTS} clients, {} rounds of {} s, medians. Ratios are medians of each \
         round's own ratio to its run without plugins.\n\n\
         | mode | plugins | tps | ratio | p99 ms | proxy CPU s for 1,000 | ratio |\n|---|---|---:|---:|---:|---:|---:|\n",
        plan.rounds, plan.seconds
    );
    for mode in MODES {
        for (variant, (name, _)) in VARIANTS.iter().enumerate() {
            let of = |variant: usize| {
                rounds.iter().filter(move |round| round.mode == mode && round.variant == variant)
            };
            if let Some(why) = of(variant).find_map(|round| round.sample.as_ref().err()) {
                text += &format!("| {mode} | {name} | **failed**: {} | | | | |\n", one_line(why));
                continue;
            }
            let samples: Vec<&Sample> = of(variant).filter_map(|round| round.sample.as_ref().ok()).collect();
            let middle = |figure: &dyn Fn(&Sample) -> f64| {
                median(samples.iter().map(|sample| figure(sample)).collect())
            };
            let ratio = |figure: &dyn Fn(&Sample) -> f64| {
                let pairs = of(variant).filter_map(|one| {
                    let plain = of(0).find(|plain| plain.round == one.round)?;
                    Some(figure(one.sample.as_ref().ok()?) / figure(plain.sample.as_ref().ok()?))
                });
                median(pairs.collect())
            };
            let tps = |sample: &Sample| sample.outcome.tps;
            let cpu = |sample: &Sample| sample.proxy_cpu_per_1000().unwrap_or(f64::NAN);
            text += &format!(
                "| {mode} | {name} | {:.0} | {:.3} | {:.3} | {:.4} | {:.3} |\n",
                middle(&tps),
                ratio(&tps),
                middle(&|sample| sample.outcome.p99_ms),
                middle(&cpu),
                ratio(&cpu),
            );
        }
    }
    text
}
