//! The image of the default run, made from this machine's own packages: busybox, sqlite3 and a real source tree.
//!
//! The tree is the sources of the libraries that Pannier was built from, where cargo keeps them; else the system's own
//! headers and documents. No registry is asked.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::TryError;

/// The image's name; `localhost/` images are never pulled.
pub const IMAGE: &str = "localhost/pannier-try:latest";

/// Enough files for a real tree, few enough for a minute: about 4,000.
const FILES_MIN: usize = 4_000;

/// 64 MiB: a larger crate would say nothing more.
const BYTES_MAX: u64 = 64 << 20;

/// Programs of the image beside busybox.
const PROGRAMS: &[&str] = &["/usr/bin/sqlite3"];

/// What went into the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tree {
    /// Regular files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Builds the image in the Podman storage that `podman` uses (by its own socket or default storage).
///
/// # Errors
/// `Tool` if a program fails or is missing, `State` for local files.
pub async fn build(work_dir: &Path, tree: &Path, podman: &[String]) -> Result<Tree, TryError> {
    let root = work_dir.join("rootfs");
    for dir in ["bin", "etc", "tmp", "input", "data", "usr/bin", "lib64"] {
        let path = root.join(dir);
        std::fs::create_dir_all(&path).map_err(|source| TryError::State { path, source })?;
    }
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::write(&path, text).map_err(|source| TryError::State { path, source })
    };
    write("etc/passwd", "root:x:0:0:root:/:/bin/sh\n")?;
    write("etc/group", "root:x:0:\n")?;
    copy(Path::new("/bin/busybox"), &root)?;
    install_applets(&root).await?;
    for program in PROGRAMS {
        copy(Path::new(program), &root)?;
        for library in libraries(program).await? {
            copy(&library, &root)?;
        }
    }
    let (list, sizes) = choose(tree)?;
    let list_path = work_dir.join("tree.list");
    std::fs::write(&list_path, list.join("\n")).map_err(|source| TryError::State {
        path: list_path.clone(),
        source,
    })?;
    run(Command::new("tar")
        .arg("--create")
        .arg("--file")
        .arg(root.join("input/tree.tar"))
        .arg("--directory")
        .arg(tree)
        .arg("--files-from")
        .arg(&list_path))
    .await?;
    let archive = work_dir.join("image.tar");
    run(Command::new("tar")
        .arg("--create")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(&root)
        .arg("."))
    .await?;
    let (program, arguments) = podman.split_first().expect("the podman command has a program");
    run(Command::new(program)
        .args(arguments)
        .arg("import")
        .arg(&archive)
        .arg(IMAGE))
    .await?;
    Ok(sizes)
}

/// Takes the image out of the storage again; a failure leaves it there, which the next run replaces.
pub async fn remove(podman: &[String]) {
    let (program, arguments) = podman.split_first().expect("the podman command has a program");
    drop(run(Command::new(program).args(arguments).args(["rmi", "--force", IMAGE])).await);
}

/// Where a real tree is on this machine: cargo's sources of the dependencies, else the system's shared files.
pub fn default_tree(cargo_home: Option<PathBuf>) -> Option<PathBuf> {
    let registries = cargo_home
        .map(|home| home.join("registry/src"))
        .and_then(|path| std::fs::read_dir(path).ok());
    let mut candidates: Vec<PathBuf> = registries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    candidates.sort();
    candidates.extend(["/usr/include", "/usr/share/perl", "/usr/share/doc"].map(PathBuf::from));
    candidates.into_iter().find(|path| path.is_dir())
}

/// The first files of the tree, folder by folder in order, until there are enough: paths relative to it.
fn choose(tree: &Path) -> Result<(Vec<String>, Tree), TryError> {
    let mut chosen = Vec::new();
    let mut sizes = Tree::default();
    let mut folders = vec![tree.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let read = |source| TryError::State {
            path: folder.clone(),
            source,
        };
        let mut entries: Vec<_> = std::fs::read_dir(&folder)
            .map_err(read)?
            .collect::<Result<_, _>>()
            .map_err(read)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in &entries {
            let meta = entry.metadata().map_err(read)?;
            let path = entry.path();
            let relative = path.strip_prefix(tree).expect("entries lie below the tree");
            // Names with newlines cannot stand in a list for tar.
            let Some(name) = relative.to_str().filter(|name| !name.contains('\n')) else {
                continue;
            };
            if meta.is_file() && sizes.bytes + meta.len() <= BYTES_MAX && sizes.files < FILES_MIN {
                sizes.files += 1;
                sizes.bytes += meta.len();
                chosen.push(name.to_owned());
            }
        }
        // Deepest first and in reverse, so that folders are taken in the order of their names.
        folders.extend(
            entries
                .iter()
                .rev()
                .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                .map(|e| e.path()),
        );
        if sizes.files >= FILES_MIN {
            break;
        }
    }
    Ok((chosen, sizes))
}

fn copy(from: &Path, root: &Path) -> Result<(), TryError> {
    let to = root.join(from.strip_prefix("/").expect("system paths are absolute"));
    let parent = to.parent().expect("the target has a parent");
    std::fs::create_dir_all(parent).map_err(|source| TryError::State {
        path: parent.to_owned(),
        source,
    })?;
    std::fs::copy(from, &to).map_err(|source| TryError::State {
        path: from.to_owned(),
        source,
    })?;
    Ok(())
}

/// A link for every command of busybox.
async fn install_applets(root: &Path) -> Result<(), TryError> {
    let list = run(Command::new("/bin/busybox").arg("--list")).await?;
    for applet in list.lines().filter(|applet| !applet.is_empty() && *applet != "busybox") {
        let path = root.join("bin").join(applet);
        if path.symlink_metadata().is_err() {
            std::os::unix::fs::symlink("busybox", &path).map_err(|source| TryError::State { path, source })?;
        }
    }
    Ok(())
}

/// The shared libraries that a program loads, as the system's loader finds them.
async fn libraries(program: &str) -> Result<Vec<PathBuf>, TryError> {
    let text = run(Command::new("ldd").arg(program)).await?;
    let paths = text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// Runs a program to its end and returns what it printed.
async fn run(command: &mut Command) -> Result<String, TryError> {
    let shown = format!("{:?}", command.as_std());
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| TryError::Tool {
            command: shown.clone(),
            detail: error.to_string(),
        })?;
    if !output.status.success() {
        let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(TryError::Tool { command: shown, detail });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
