//! The service manager's store of descriptors (systemd: `FileDescriptorStoreMax=`), where what is kept lies as well: a keeper that is
//! killed, or replaced by another version, finds it there when it starts again.
//!
//! Under one name lie two descriptors: a connection, and a file in memory with the words by which an engine lets it be kept.
//! Protocol: sd_notify(3) and sd_listen_fds(3). Caller: `shelf.rs`. Absent: all of it where no service manager has started the
//! keeper, as where a plugin has.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket};

use super::shelf::Shelved;
use super::wire::{Message, PACKET_BYTES_MAX};

/// The first descriptor that a service manager hands on.
const FIRST: RawFd = 3;

/// What a service manager tells the process that it starts, by its environment.
#[derive(Debug, Clone, Default)]
pub struct ServiceManager {
    /// NOTIFY_SOCKET: where it listens; behind an `@` if it is no file.
    pub notify_socket: Option<String>,
    /// LISTEN_PID: to whom the descriptors are handed.
    pub listen_pid: Option<u32>,
    /// LISTEN_FDS: how many.
    pub listen_fds: u32,
    /// LISTEN_FDNAMES: their names, with colons between.
    pub listen_fdnames: String,
}

impl ServiceManager {
    /// Puts a connection into the store; in place of what lies there by its name, if it `replaces` that. A failure is told: it costs
    /// what only a dead keeper needs.
    pub(super) fn keep(&self, key: &[u8], shelved: &Shelved, replaces: bool) {
        if self.notify_socket.is_none() {
            return;
        }
        let words = Message::Keep {
            key: key.to_vec(),
            needs: shelved.needs,
            beside: match shelved.beside.again() {
                Ok(beside) => beside,
                Err(error) => return tracing::error!(%error, "a connection is not in the service manager's store"),
            },
        };
        if replaces {
            self.forget(key);
        }
        let stored = words.in_memory().and_then(|file| {
            let both = [shelved.connection.as_raw_fd(), file.as_raw_fd()];
            self.say(&format!("FDSTORE=1\nFDNAME={}", name_of(key)), &both)
        });
        if let Err(error) = stored {
            tracing::error!(%error, "a connection is not in the service manager's store: the keeper's end would be its own");
        }
    }

    /// Takes a connection that has ended out of the store.
    pub(super) fn forget(&self, key: &[u8]) {
        self.remove(&name_of(key));
    }

    fn remove(&self, name: &str) {
        if let Err(error) = self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]) {
            tracing::warn!(%error, "the service manager still holds what nobody needs");
        }
    }

    fn say(&self, state: &str, beside: &[RawFd]) -> io::Result<()> {
        let Some(name) = &self.notify_socket else { return Ok(()) };
        let address = match name.strip_prefix('@') {
            Some(abstract_name) => UnixAddr::new_abstract(abstract_name.as_bytes())?,
            None => UnixAddr::new(OsStr::from_bytes(name.as_bytes()))?,
        };
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let rights = [ControlMessage::ScmRights(beside)];
        let control = if beside.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(state.as_bytes())];
        sendmsg(
            socket.as_raw_fd(),
            &parts,
            control,
            MsgFlags::MSG_NOSIGNAL,
            Some(&address),
        )?;
        Ok(())
    }

    /// What the keeper before has left in the store. What cannot be understood is taken out of it.
    pub(super) fn left(&self) -> Vec<(Vec<u8>, Shelved)> {
        if self.listen_pid != Some(std::process::id()) {
            return Vec::new();
        }
        let names = self.listen_fdnames.split(':').map(str::to_owned);
        let numbers = (FIRST..).take(self.listen_fds as usize);
        let mut handed: Vec<(String, File)> = names
            .zip(numbers)
            // SAFETY: the service manager has handed these on to this very process, nobody has used their numbers since it
            // began, and each is wrapped once.
            .map(|(name, number)| (name, unsafe { File::from_raw_fd(number) }))
            .collect();
        for (_, file) in &handed {
            if let Err(error) = fcntl(file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
                tracing::error!(%error, "engines inherit a connection");
            }
        }
        let mut left = Vec::new();
        while let Some((name, first)) = handed.pop() {
            let second = handed.iter().position(|(other, _)| *other == name);
            let pair = second.map(|at| (first, handed.swap_remove(at).1));
            match pair.ok_or(io::ErrorKind::NotFound.into()).and_then(shelved_of) {
                Ok(found) => left.push(found),
                Err(error) => {
                    tracing::error!(%error, name, "the service manager's store has something that is not understood");
                    self.remove(&name);
                }
            }
        }
        left
    }
}

/// What is kept and the file in memory with the words beside it, in any order.
fn shelved_of((one, other): (File, File)) -> io::Result<(Vec<u8>, Shelved)> {
    let (connection, words) = match words_in(&other)? {
        Some(words) => (one, words),
        None => {
            let words = words_in(&one)?;
            (other, words.ok_or(io::ErrorKind::NotFound)?)
        }
    };
    match words {
        Message::Keep { key, needs, beside } => Ok((
            key,
            Shelved {
                connection: connection.into(),
                needs,
                beside,
            },
        )),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{other:?}"))),
    }
}

/// The words in a file, if it is one of words. A connection is never read from: what is read of it is gone.
fn words_in(mut file: &File) -> io::Result<Option<Message>> {
    if file.metadata()?.file_type().is_char_device() {
        return Ok(None);
    }
    file.rewind()?;
    let mut packet = Vec::new();
    file.take(PACKET_BYTES_MAX as u64).read_to_end(&mut packet)?;
    let message = Message::decode(&packet);
    // It holds keys.
    packet.fill(0);
    Ok(message.ok())
}

impl Message {
    /// A file in memory with this message.
    fn in_memory(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create("pannier-kept", MFdFlags::MFD_CLOEXEC)?);
        let mut packet = self.encode();
        let written = file.write_all(&packet);
        packet.fill(0);
        written.map(|()| file.into())
    }
}

/// A name for the store: it takes no colons, no control characters and 255 bytes.
fn name_of(key: &[u8]) -> String {
    // FNV-1a: the same in every version.
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("pannier-{hash:016x}")
}
