//! Ctrl-C and SIGTERM, as a fact that the run looks at between its steps and while it waits.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::TryError;

/// Whether the run shall end.
#[derive(Debug, Clone)]
pub struct Interrupt {
    asked: watch::Receiver<bool>,
}

impl Interrupt {
    /// Begins to listen; from now on the signals no longer end the process.
    ///
    /// # Errors
    /// `Machine` if the signals cannot be caught.
    pub fn listen() -> Result<Self, TryError> {
        let catch = |kind| signal(kind).map_err(|error| TryError::Machine(format!("cannot catch signals: {error}")));
        let (mut int, mut term) = (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
        let (tell, asked) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
            }
            tell.send_replace(true);
            // Keep both streams: a second Ctrl-C must not end us in the middle of the clean-up.
            std::future::pending::<()>().await;
            drop((int, term, tell));
        });
        Ok(Self { asked })
    }

    /// # Errors
    /// `Interrupted` once it was asked for.
    pub fn check(&self) -> Result<(), TryError> {
        if *self.asked.borrow() {
            Err(TryError::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Returns once it was asked for.
    pub async fn asked(&self) {
        let mut asked = self.asked.clone();
        if asked.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
