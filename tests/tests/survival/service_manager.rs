//! A keeper under a service manager, which holds what it holds and starts it again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tests::engine_process::{Ask, EngineProcess};
use tests::local_store::LocalStore;

use crate::{ends_without_a_trace, wait_until};

/// The part of systemd that keeps descriptors.
struct Manager {
    socket: UnixDatagram,
    store: BTreeMap<String, Vec<OwnedFd>>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_nonblocking(true).expect("it never waits");
        Self {
            socket,
            store: BTreeMap::new(),
        }
    }

    /// Does what it was told since.
    fn hear(&mut self) {
        let mut text = [0; 4096];
        loop {
            let mut space = nix::cmsg_space!([RawFd; 4]);
            let mut parts = [IoSliceMut::new(&mut text)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let Ok(message) = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags) else {
                return;
            };
            let mut beside = Vec::new();
            for control in message.cmsgs().expect("whole messages") {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    // SAFETY: the kernel has just installed them for this process, and each is wrapped once.
                    beside.extend(
                        numbers
                            .into_iter()
                            .map(|number| unsafe { OwnedFd::from_raw_fd(number) }),
                    );
                }
            }
            let len = message.bytes;
            let state = String::from_utf8(text[..len].to_vec()).expect("words");
            let name = state
                .lines()
                .find_map(|line| line.strip_prefix("FDNAME="))
                .expect("a name");
            match state.lines().next() {
                Some("FDSTORE=1") => self.store.entry(name.to_owned()).or_default().extend(beside),
                Some("FDSTOREREMOVE=1") => drop(self.store.remove(name)),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Hands everything on, and goes on holding it.
    fn handed(&self) -> Vec<(String, OwnedFd)> {
        let all = self.store.iter();
        let each = all.flat_map(|(name, fds)| {
            fds.iter()
                .map(|fd| (name.clone(), fd.try_clone().expect("a descriptor")))
        });
        each.collect()
    }
}

/// A keeper that is killed with its engine, as a service manager kills a service, goes on with the same mounts when it is started again, twice: open
/// files are open, nothing that was told is lost.
#[test]
fn a_keeper_that_a_service_manager_starts_again_goes_on_with_its_mounts() {
    let store = LocalStore::start();
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let notify = folder.join("notify");
    let mut manager = Manager::at(&notify);
    let mut engine = EngineProcess::start_as_service(&store, &folder, &notify, &[]);
    engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
    let path = mnt.join("open");
    // Another process: who starts the next keeper must not close a file of the mount in the new process, which would wait for that
    // very keeper.
    let open = File::options()
        .create_new(true)
        .append(true)
        .open(&path)
        .expect("a file");
    let mut program = Command::new("/bin/sh")
        .args(["-c", "while read line; do echo $line; done"])
        .stdin(Stdio::piped())
        .stdout(open)
        .spawn()
        .expect("a shell");
    let told = |rounds: usize| "told\n".repeat(rounds);
    for round in 0..2 {
        let words = program.stdin.as_mut().expect("its words");
        words.write_all(b"told\n").expect("it listens");
        wait_until("it is written", || {
            fs::read_to_string(&path).expect("it is read") == told(round + 1)
        });
        manager.hear();
        assert_eq!(manager.store.len(), 1, "the mount is in the store");
        let serving = engine.kept_engine().expect("an engine");
        engine.signal(Signal::SIGKILL);
        kill(serving, Signal::SIGKILL).expect("it is there");
        engine.wait();
        engine = engine.succeeded_by(|| EngineProcess::start_as_service(&store, &folder, &notify, &manager.handed()));
        assert_eq!(fs::read_to_string(&path).expect("it is read"), told(round + 1));
    }
    assert_eq!(engine.mounts().len(), 1, "the last engine knows the mount");
    fs::write(mnt.join("file"), "served").expect("it is served");
    drop(program.stdin.take());
    assert!(
        program.wait().expect("the shell ends").success(),
        "its file was open all the time"
    );
    ends_without_a_trace(engine, &folder, &mnt);
    wait_until("the store is empty", || {
        manager.hear();
        manager.store.is_empty()
    });
}
