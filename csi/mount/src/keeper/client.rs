//! The engine's side of the keeper.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::secret::Secret;
use super::wire::{Message, Peer};

/// Why the keeper did not do it.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The socket.
    #[error("the keeper at {}: {source}", socket.display())]
    Io {
        /// Where it was looked for.
        socket: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// It said no.
    #[error("the keeper refuses: {why}")]
    Refused {
        /// Its words.
        why: String,
    },
}

/// A connection that an engine before this one has served.
#[derive(Debug)]
pub struct Kept {
    /// What it was called.
    pub key: Vec<u8>,
    /// What lies beside it.
    pub beside: Vec<u8>,
    /// The connection.
    pub connection: OwnedFd,
}

/// The keeper of this engine. It tells the engine's end by the end of this connection.
#[derive(Debug)]
pub struct KeeperClient {
    socket: PathBuf,
    /// Held for one question and its answer.
    peer: Mutex<Peer>,
}

impl KeeperClient {
    /// Tells the keeper at `socket` that this engine is ready, and takes over what it keeps. `reads` is the version up to which
    /// this engine understands it. Blocks until the engine before has ended.
    ///
    /// # Errors
    /// `Refused` where this engine is too old, or is none of the keeper's; `Io`.
    pub fn take_over(socket: &Path, reads: u32) -> Result<(Self, Vec<Kept>), KeeperError> {
        let failed = io_error(socket);
        let peer = Peer::connect(socket).map_err(&failed)?;
        peer.send(&Message::Ready { reads }, None).map_err(&failed)?;
        let mut all = Vec::new();
        loop {
            match peer.receive().map_err(&failed)? {
                Some((Message::Kept { key, beside }, Some(connection))) => all.push(Kept {
                    key,
                    beside: beside.as_ref().to_vec(),
                    connection,
                }),
                Some((Message::All, None)) => break,
                other => return Err(unexpected(socket, other)),
            }
        }
        let client = Self {
            socket: socket.to_path_buf(),
            peer: Mutex::new(peer),
        };
        Ok((client, all))
    }

    /// Lets the keeper hold a connection, with what an engine of version `needs` wants to know of it; without a connection, lets
    /// it know something else of the one it holds.
    ///
    /// # Errors
    /// `Refused`, `Io`.
    pub fn keep(
        &self,
        key: &[u8],
        (needs, beside): (u32, &[u8]),
        connection: Option<BorrowedFd<'_>>,
    ) -> Result<(), KeeperError> {
        let beside = Secret::copy_of(beside).map_err(io_error(&self.socket))?;
        let message = Message::Keep {
            key: key.to_vec(),
            needs,
            beside,
        };
        self.ask(&message, connection)
    }

    /// Tells the keeper that everything it gave is served.
    ///
    /// # Errors
    /// `Io`.
    pub fn serves(&self) -> Result<(), KeeperError> {
        self.ask(&Message::Serves, None)
    }

    /// Tells the keeper that what it gave will be served, and is waited for: without such a word for long it gives this engine up.
    ///
    /// # Errors
    /// `Io`; `Refused` by a keeper that does not know the word, and waits without.
    pub fn adopts(&self) -> Result<(), KeeperError> {
        self.ask(&Message::Adopts, None)
    }

    /// Lets the keeper forget a connection that has ended.
    ///
    /// # Errors
    /// `Io`.
    pub fn forget(&self, key: &[u8]) -> Result<(), KeeperError> {
        self.ask(&Message::Forget { key: key.to_vec() }, None)
    }

    fn ask(&self, message: &Message, beside: Option<BorrowedFd<'_>>) -> Result<(), KeeperError> {
        let peer = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        ask(&self.socket, &peer, message, beside)
    }
}

/// Lets the keeper at `socket` start another engine, which takes over when it is ready. Returns as soon as it is started.
///
/// # Errors
/// `Refused` where it cannot be started; `Io` where no keeper listens.
pub fn replace_engine(socket: &Path, program: PathBuf, args: Vec<OsString>) -> Result<(), KeeperError> {
    let peer = Peer::connect(socket).map_err(io_error(socket))?;
    ask(socket, &peer, &Message::Replace { program, args }, None)
}

fn ask(socket: &Path, peer: &Peer, message: &Message, beside: Option<BorrowedFd<'_>>) -> Result<(), KeeperError> {
    peer.send(message, beside).map_err(io_error(socket))?;
    match peer.receive().map_err(io_error(socket))? {
        Some((Message::Done, _)) => Ok(()),
        other => Err(unexpected(socket, other)),
    }
}

fn unexpected(socket: &Path, answer: Option<(Message, Option<OwnedFd>)>) -> KeeperError {
    match answer {
        Some((Message::Refused { why }, _)) => KeeperError::Refused { why },
        Some((other, _)) => io_error(socket)(io::Error::new(io::ErrorKind::InvalidData, format!("it said {other:?}"))),
        None => io_error(socket)(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn io_error(socket: &Path) -> impl Fn(io::Error) -> KeeperError + use<> {
    let socket = socket.to_path_buf();
    move |source| KeeperError::Io {
        socket: socket.clone(),
        source,
    }
}
