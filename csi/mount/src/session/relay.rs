//! A connection whose requests pass through `Requests` on their way to fuser: what a successor needs where the kernel cannot send a
//! request again.
//!
//! One thread takes requests off the connection and gives them to fuser over a pair of sockets, another takes fuser's replies back.
//! What a predecessor has left is given first, marked as the kernel of Linux 6.9 marks what it sends again.
//!
//! Invariant: what is known of a call (`Unanswered`) is kept until its reply has been written to the connection, which is later than
//! fuser says. Caller: `session.rs`. It costs two copies and two changes of threads for each request.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBuf;
use nix::sys::socket::{MsgFlags, recv, send, setsockopt};
use volume::calls::Unanswered;

use super::requests::{Leftover, Requests, WRITE_BYTES_MAX, number_of};

/// Set in the number of a request that was given to a predecessor, as the kernel does since Linux 6.9.
pub const SENT_AGAIN: u64 = 1 << 63;

/// 4 MiB of packets on their way, if the system allows as many.
const SOCKET_BYTES: usize = 4 * 1024 * 1024;

/// 64 KiB beside the longest read: for a reply's header, and for what is no read.
const REPLY_BYTES_MAX: usize = WRITE_BYTES_MAX as usize + 64 * 1024;

/// FUSE_DESTROY: a thread of fuser ends by it.
const DESTROY: u32 = 38;

/// Calls that are done, until their answers have left. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// `None` where an answer has left when fuser says so.
    relayed: Option<Arc<Mutex<HashMap<u64, Unanswered>>>>,
}

impl Outgoing {
    /// Of a connection that is relayed.
    pub fn relayed() -> Self {
        Self {
            relayed: Some(Arc::default()),
        }
    }

    /// Before a call is answered: keeps what is known of it, or gives it back to be dropped when fuser was given the answer.
    pub fn hold(&self, call: u64, unanswered: Unanswered) -> Option<Unanswered> {
        match &self.relayed {
            None => Some(unanswered),
            Some(held) => {
                held.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(call, unanswered);
                None
            }
        }
    }

    fn left(&self, call: u64) {
        if let Some(held) = &self.relayed {
            held.lock().unwrap_or_else(PoisonError::into_inner).remove(&call);
        }
    }
}

/// Both ends of the way.
#[derive(Debug)]
pub struct Relay {
    /// The connection.
    pub device: OwnedFd,
    /// The other end is fuser's.
    pub socket: OwnedFd,
    /// What is on its way.
    pub requests: Arc<Requests>,
    /// Whose answers are.
    pub outgoing: Outgoing,
    /// How many threads of fuser read from the socket.
    pub threads: usize,
}

impl Relay {
    /// Begins, and goes on until the connection ends.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn start(self) -> io::Result<()> {
        if let Err(error) = setsockopt(&self.socket, SndBuf, &SOCKET_BYTES) {
            tracing::debug!(%error, "fewer requests are on their way at a time");
        }
        let (asks, answers) = (Arc::new(self), "fuse-replies");
        let replies = Arc::clone(&asks);
        std::thread::Builder::new()
            .name(answers.into())
            .spawn(move || replies.pass_replies())?;
        std::thread::Builder::new()
            .name("fuse-requests".into())
            .spawn(move || asks.pass_requests())?;
        Ok(())
    }

    fn pass_requests(&self) {
        let passed = self.pass_leftovers().and_then(|()| self.pass_new());
        if let Err(error) = passed {
            tracing::error!(%error, "requests of a mount are not passed on any more");
        }
        let mut end = [0; 40];
        end[..4].copy_from_slice(&40u32.to_ne_bytes());
        end[4..8].copy_from_slice(&DESTROY.to_ne_bytes());
        for _ in 0..self.threads {
            if let Err(error) = self.pass(&end) {
                tracing::debug!(%error, "the mount's threads have ended already");
            }
        }
    }

    fn pass_leftovers(&self) -> io::Result<()> {
        let mut device = File::from(self.device.try_clone()?);
        for left in self.requests.leftovers() {
            match left {
                Leftover::Reply(reply) => {
                    let number = number_of(&reply);
                    match self.requests.reply(number, &reply, || device.write_all(&reply)) {
                        // It had left.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        written => written?,
                    }
                }
                Leftover::Request(mut request) => {
                    let number = number_of(&request) | SENT_AGAIN;
                    request[8..16].copy_from_slice(&number.to_ne_bytes());
                    self.pass(&request)?;
                }
            }
        }
        Ok(())
    }

    /// Until the kernel has given the connection up.
    fn pass_new(&self) -> io::Result<()> {
        let mut device = File::from(self.device.try_clone()?);
        loop {
            match self.requests.take().fill(|room| device.read(room)) {
                Ok(request) => self.pass(&request.0)?,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    // ENOENT: whoever asked has gone.
                    Some(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => {}
                    Some(Errno::ENODEV) => return Ok(()),
                    _ => return Err(error),
                },
            }
        }
    }

    fn pass(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            match send(self.socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL) {
                Err(Errno::EINTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    /// Until fuser has let go of its end.
    fn pass_replies(&self) {
        let mut room = vec![0; REPLY_BYTES_MAX];
        loop {
            let len = match recv(self.socket.as_raw_fd(), &mut room, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                Ok(len) if len >= 16 => len,
                Ok(_) | Err(Errno::ECONNRESET) => return,
                Err(error) => return tracing::error!(%error, "replies of a mount are not passed on any more"),
            };
            let number = number_of(&room) & !SENT_AGAIN;
            room[8..16].copy_from_slice(&number.to_ne_bytes());
            let reply = &room[..len];
            let written = self
                .requests
                .reply(number, reply, || nix::unistd::write(&self.device, reply));
            self.outgoing.left(number);
            match written {
                // Whoever asked has gone, or the mount has.
                Ok(_) | Err(Errno::ENOENT | Errno::ENODEV) => {}
                Err(error) => tracing::error!(%error, "a reply did not reach the kernel"),
            }
        }
    }
}
