//! The table: a line for each thing measured, a column for each system, and whether the promise about it holds.

use std::collections::BTreeMap;

use tests::s3_proxy::{Counts, Verb};

use crate::systems::System;

/// What a volume must reach.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// At least this share of what another system reaches.
    ShareOf(System, f64),
    /// At least this share of what the slower of two reaches.
    ShareOfLesser([System; 2], f64),
    /// At most this many times what another system takes.
    TimesOf(System, f64),
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// At most this many times what another system takes, and something on top.
    TimesOfPlus(System, f64, f64),
}

impl Limit {
    /// The value that the limit stands for; `None` where the other system was not measured.
    fn bound(self, values: &BTreeMap<System, f64>) -> Option<f64> {
        match self {
            Limit::ShareOf(system, share) | Limit::TimesOf(system, share) => Some(values.get(&system)? * share),
            Limit::ShareOfLesser([one, other], share) => Some(values.get(&one)?.min(*values.get(&other)?) * share),
            Limit::TimesOfPlus(system, times, plus) => Some(values.get(&system)? * times + plus),
            Limit::AtLeast(bound) | Limit::AtMost(bound) => Some(bound),
        }
    }

    fn is_least(self) -> bool {
        matches!(self, Limit::ShareOf(..) | Limit::ShareOfLesser(..) | Limit::AtLeast(_))
    }

    fn words(self) -> String {
        match self {
            Limit::ShareOf(system, share) => format!(">= {share} x {}", system.name()),
            Limit::ShareOfLesser([one, other], share) => format!(">= {share} x {}, {}", one.name(), other.name()),
            Limit::TimesOf(system, times) => format!("<= {times} x {}", system.name()),
            Limit::TimesOfPlus(system, times, plus) => format!("<= {times} x {} + {plus}", system.name()),
            Limit::AtLeast(bound) => format!(">= {bound}"),
            Limit::AtMost(bound) => format!("<= {bound}"),
        }
    }
}

/// A thing that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// What.
    pub name: &'static str,
    /// Of what: `/s`, `ms`, `s`, `MB/s`.
    pub unit: &'static str,
    /// What a volume must reach, if anything was promised.
    pub limit: Option<Limit>,
}

impl Metric {
    /// True where more is better.
    fn more_is_better(&self) -> bool {
        self.unit.ends_with("/s") || self.unit == "x"
    }
}

/// All that was measured.
#[derive(Debug, Default)]
pub struct Table {
    lines: Vec<(Metric, BTreeMap<System, f64>, Option<Counts>)>,
}

impl Table {
    /// Notes a value: the best of several rounds stays, which on a machine that does other things too is the nearest to the truth.
    pub fn note(&mut self, metric: Metric, system: System, value: f64) {
        println!(
            "  {:<42}{:<11}{:>10} {}",
            metric.name,
            system.name(),
            number(value),
            metric.unit
        );
        let values = &mut self.line(metric).1;
        let better = |old: f64| {
            if metric.more_is_better() {
                value > old
            } else {
                value < old
            }
        };
        match values.get(&system) {
            Some(old) if !better(*old) => {}
            _ => drop(values.insert(system, value)),
        }
    }

    /// Notes what a line cost the store, for a volume.
    pub fn note_counts(&mut self, metric: Metric, counts: Counts) {
        self.line(metric).2 = Some(counts);
    }

    /// What was noted.
    pub fn value(&self, name: &str, system: System) -> Option<f64> {
        let line = self.lines.iter().find(|(metric, ..)| metric.name == name)?;
        line.1.get(&system).copied()
    }

    fn line(&mut self, metric: Metric) -> &mut (Metric, BTreeMap<System, f64>, Option<Counts>) {
        let at = self.lines.iter().position(|(known, ..)| known.name == metric.name);
        let at = at.unwrap_or_else(|| {
            self.lines.push((metric, BTreeMap::new(), None));
            self.lines.len() - 1
        });
        &mut self.lines[at]
    }

    /// Prints it; returns how many promises were not kept.
    pub fn print(&self) -> usize {
        let mut missed = 0;
        print!("\n{:<42}{:>6}", "", "");
        let measured = |system: &System| self.lines.iter().any(|(_, values, _)| values.contains_key(system));
        let systems: Vec<System> = System::ALL.into_iter().filter(measured).collect();
        for system in &systems {
            print!("{:>11}", system.name());
        }
        println!("{:>10}  {:<26}{:<6}PUT / GET / DELETE", "ratio", "limit", "met");
        for (metric, values, counts) in &self.lines {
            print!("{:<42}{:>6}", metric.name, metric.unit);
            for system in &systems {
                match values.get(system) {
                    Some(value) => print!("{:>11}", number(*value)),
                    None => print!("{:>11}", "-"),
                }
            }
            let ours = values.get(&System::Pannier).copied();
            let bound = metric.limit.and_then(|limit| limit.bound(values));
            let (ratio, met) = match (ours, bound, metric.limit) {
                (Some(ours), Some(bound), Some(limit)) => {
                    let met = if limit.is_least() { ours >= bound } else { ours <= bound };
                    missed += usize::from(!met);
                    (ours / bound, if met { "yes" } else { "NO" })
                }
                _ => (f64::NAN, ""),
            };
            let words = metric.limit.map(Limit::words).unwrap_or_default();
            let ratio = if ratio.is_nan() {
                String::new()
            } else {
                format!("{ratio:.2}")
            };
            print!("{ratio:>10}  {words:<26}{met:<6}");
            match counts {
                Some(counts) => println!(
                    "{} / {} / {}",
                    counts.of(Verb::Put).requests,
                    counts.requests() - counts.of(Verb::Put).requests - counts.of(Verb::Delete).requests,
                    counts.of(Verb::Delete).requests
                ),
                None => println!(),
            }
        }
        for system in systems.into_iter().filter(|system| system.times_fewer() > 1) {
            println!(
                "{} gets one file of {} of a tree: unpacking, reading and removing it are told as for all, rates are of those",
                system.name(),
                system.times_fewer()
            );
        }
        missed
    }
}

fn number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2}M", value / 1e6),
        value if value >= 1e4 => format!("{:.1}k", value / 1e3),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
