//! What a person sees: each protocol step as it happens, with how long it took, and the task's own output between.
//!
//! Everything goes to standard error but the task's output, so that `pannier try >file` keeps just that.

use std::fmt::Display;
use std::future::Future;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Prints the progress of one run.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    started: Instant,
}

impl Report {
    /// Starts the clock.
    pub fn start() -> Self {
        Self {
            started: Instant::now(),
        }
    }

    /// A new chapter.
    pub fn chapter(&self, title: impl Display) {
        self.line(&format!("\n{title}"));
    }

    /// A fact that took no time worth showing.
    pub fn note(&self, text: impl Display) {
        self.line(&format!("             {text}"));
    }

    /// Does one step and shows how long it took, also when it failed.
    pub async fn step<T, E>(
        &self,
        who: &str,
        what: impl Display,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let before = Instant::now();
        let result = work.await;
        let mark = if result.is_ok() { "" } else { "  FAILED" };
        self.line(&format!("{:>9}  {who:<6} {what}{mark}", short(before.elapsed())));
        result
    }

    /// Since `start`.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn line(&self, text: &str) {
        // A terminal that went away is no reason to stop: the work goes on and cleans up after itself.
        drop(writeln!(std::io::stderr().lock(), "{text}"));
    }
}

/// A duration with three digits: `0.4 ms`, `12 ms`, `3.21 s`.
pub fn short(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    match ms {
        _ if ms < 10.0 => format!("{ms:.1} ms"),
        _ if ms < 1000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.2} s", ms / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_shown_with_three_digits_at_most() {
        assert_eq!(short(Duration::from_micros(420)), "0.4 ms");
        assert_eq!(short(Duration::from_millis(12)), "12 ms");
        assert_eq!(short(Duration::from_millis(3210)), "3.21 s");
    }
}
