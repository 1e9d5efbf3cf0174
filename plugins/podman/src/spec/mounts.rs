//! What the container sees of the host's files: the allocation's directories, Nomad's mounts, the task's volumes, tmpfs
//! and devices. Invariant: a path under /dev, and a tmpfs, never get an SELinux label.

use std::path::{Component, Path, PathBuf};

use super::{Inputs, Plan, SpecError};
use crate::nomad_task::Mount;
use crate::podman::{BindMount, DeviceNode, NamedVolume};
use crate::task_config::{MountKind, MountOptions};

/// Fills mounts and devices.
pub(super) fn fill(inputs: Inputs<'_>, plan: &mut Plan) -> Result<(), SpecError> {
    let Inputs { task, options, .. } = inputs;
    allocation(inputs, plan);
    for mount in &task.mounts {
        plan.container.mounts.push(nomad_mount(inputs, mount)?);
    }
    for text in &options.storage.volumes {
        volume(inputs, plan, text)?;
    }
    for text in &options.storage.tmpfs {
        plan.container.mounts.push(tmpfs(text)?);
    }
    for mount in &options.storage.mounts {
        mount_block(inputs, plan, mount)?;
    }
    plan.container.storage_opts = options.storage.storage_opt.clone();
    let plugged = task.devices.iter().map(|device| {
        let permissions = if device.permissions.is_empty() {
            "rwm"
        } else {
            &device.permissions
        };
        format!("{}:{}:{permissions}", device.host_path, device.task_path)
    });
    // A path may be source:destination:permissions or a CDI name: Podman itself tells them apart.
    let devices = options.storage.devices.iter().cloned().chain(plugged);
    plan.container.devices = devices.map(|path| DeviceNode { path }).collect();
    plan.container.shm_size = options.storage.shm_size;
    plan.container.read_only_filesystem = options.storage.readonly_rootfs;
    Ok(())
}

/// The directories that every task has, where its environment says they are.
fn allocation(inputs: Inputs<'_>, plan: &mut Plan) {
    let Inputs { task, .. } = inputs;
    let places = [
        ("NOMAD_ALLOC_DIR", "/alloc", task.alloc_dir.join("alloc")),
        ("NOMAD_TASK_DIR", "/local", task.task_dir().join("local")),
        ("NOMAD_SECRETS_DIR", "/secrets", task.task_dir().join("secrets")),
    ];
    for (variable, default, source) in places {
        let destination = task.env.get(variable).filter(|path| path.starts_with('/'));
        let mut options = vec!["rbind".to_owned(), "rprivate".to_owned()];
        options.extend(selinux(inputs, "", &source));
        plan.container.mounts.push(BindMount {
            destination: destination.map_or(default, String::as_str).to_owned(),
            kind: "bind".to_owned(),
            source: source.to_string_lossy().into_owned(),
            options,
        });
    }
}

fn nomad_mount(inputs: Inputs<'_>, mount: &Mount) -> Result<BindMount, SpecError> {
    let propagation = match mount.propagation_mode.as_str() {
        "" | "private" => "rprivate",
        "host-to-task" => "rslave",
        "bidirectional" => "rshared",
        mode => {
            return Err(SpecError::Propagation {
                task_path: mount.task_path.clone(),
                mode: mode.to_owned(),
            });
        }
    };
    let mut options = vec!["rbind".to_owned(), propagation.to_owned()];
    if mount.readonly {
        options.push("ro".to_owned());
    }
    options.extend(selinux(inputs, &mount.selinux_label, Path::new(&mount.host_path)));
    Ok(BindMount {
        destination: mount.task_path.clone(),
        kind: "bind".to_owned(),
        source: mount.host_path.clone(),
        options,
    })
}

/// The label option for a mount: its own, else the plugin's, but never on devices (relabelling /dev breaks the host).
fn selinux(inputs: Inputs<'_>, own: &str, source: &Path) -> Option<String> {
    let Inputs { options, config, .. } = inputs;
    if options.security.privileged || source.starts_with("/dev") {
        return None;
    }
    if own.is_empty() {
        config.volumes_selinux_label.clone()
    } else {
        Some(own.to_owned())
    }
}

/// `source:destination[:options]`; a relative source begins in the task's directory.
fn volume(inputs: Inputs<'_>, plan: &mut Plan, text: &str) -> Result<(), SpecError> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, mode) = match parts[..] {
        [source, destination] => (source, destination, ""),
        [source, destination, mode] => (source, destination, mode),
        _ => return Err(SpecError::Volume { text: text.to_owned() }),
    };
    if source.is_empty() || !destination.starts_with('/') {
        return Err(SpecError::Volume { text: text.to_owned() });
    }
    let source = host_path(inputs, plan, source, text)?;
    let mut options = vec!["rbind".to_owned()];
    options.extend(
        mode.split(',')
            .filter(|option| !option.is_empty() && *option != "rbind")
            .map(str::to_owned),
    );
    plan.container.mounts.push(BindMount {
        destination: destination.to_owned(),
        kind: "bind".to_owned(),
        source: source.to_string_lossy().into_owned(),
        options,
    });
    Ok(())
}

/// A path of the host that the task may mount. `text` is what the job says, for the message.
fn host_path(inputs: Inputs<'_>, plan: &mut Plan, source: &str, text: &str) -> Result<PathBuf, SpecError> {
    let Inputs { task, config, .. } = inputs;
    let source = normal(&task.task_dir().join(source));
    if !config.volumes_enabled {
        if !source.starts_with(normal(&task.alloc_dir)) {
            return Err(SpecError::VolumesDisabled { text: text.to_owned() });
        }
        // The name is inside; start.rs looks whether a symlink leads out again.
        plan.confined.push(source.clone());
    }
    Ok(source)
}

/// A `mount` block.
fn mount_block(inputs: Inputs<'_>, plan: &mut Plan, mount: &MountOptions) -> Result<(), SpecError> {
    let mut options: Vec<String> = Vec::new();
    if mount.readonly {
        options.push("ro".to_owned());
    }
    let destination = mount.target.clone();
    let (kind, source) = match &mount.kind {
        MountKind::Bind {
            source,
            propagation,
            selinux: label,
        } => {
            let path = host_path(inputs, plan, source, source)?;
            options.insert(0, "rbind".to_owned());
            options.push(propagation.clone().unwrap_or_else(|| "rprivate".to_owned()));
            options.extend(selinux(inputs, label.as_deref().unwrap_or_default(), &path).filter(|_| label.is_some()));
            ("bind", path.to_string_lossy().into_owned())
        }
        MountKind::Volume { name, no_copy } => {
            if *no_copy {
                options.push("nocopy".to_owned());
            }
            plan.container.volumes.push(NamedVolume {
                name: name.clone(),
                dest: destination,
                options,
            });
            return Ok(());
        }
        MountKind::Tmpfs { size, mode } => {
            options.extend(size.map(|size| format!("size={size}")));
            options.extend(mode.map(|mode| format!("mode={mode:o}")));
            ("tmpfs", "tmpfs".to_owned())
        }
    };
    plan.container.mounts.push(BindMount {
        destination,
        kind: kind.to_owned(),
        source,
        options,
    });
    Ok(())
}

fn tmpfs(text: &str) -> Result<BindMount, SpecError> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    if !destination.starts_with('/') {
        return Err(SpecError::Tmpfs { text: text.to_owned() });
    }
    Ok(BindMount {
        destination: destination.to_owned(),
        kind: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        options: options
            .split(',')
            .filter(|option| !option.is_empty())
            .map(str::to_owned)
            .collect(),
    })
}

/// The path with `.` and `..` worked out by name alone; `..` at the root stays at the root.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nomad_task::Device;
    use crate::spec::fixture::Case;

    fn mount(case: &Case, destination: &str) -> BindMount {
        let mounts = case.container().mounts;
        mounts
            .into_iter()
            .find(|mount| mount.destination == destination)
            .expect("no such mount")
    }

    fn nomad(propagation_mode: &str) -> Mount {
        let (task_path, host_path) = ("/data".to_owned(), "/mnt/vol".to_owned());
        Mount {
            task_path,
            host_path,
            propagation_mode: propagation_mode.to_owned(),
            ..Mount::default()
        }
    }

    #[test]
    fn the_allocations_directories_are_where_the_environment_says() {
        let mut case = Case::new();
        assert_eq!(mount(&case, "/alloc").source, "/nomad/alloc1/alloc");
        assert_eq!(mount(&case, "/local").source, "/nomad/alloc1/web/local");
        assert_eq!(mount(&case, "/secrets").source, "/nomad/alloc1/web/secrets");
        case.task.env.insert("NOMAD_TASK_DIR".into(), "/elsewhere".into());
        assert_eq!(mount(&case, "/elsewhere").source, "/nomad/alloc1/web/local");
    }

    #[test]
    fn nomads_mounts_keep_their_propagation() {
        for (mode, want) in [
            ("", "rprivate"),
            ("private", "rprivate"),
            ("host-to-task", "rslave"),
            ("bidirectional", "rshared"),
        ] {
            let mut case = Case::new();
            case.task.mounts.push(nomad(mode));
            let mounted = mount(&case, "/data");
            assert_eq!((mounted.source.as_str(), mounted.kind.as_str()), ("/mnt/vol", "bind"));
            assert_eq!(mounted.options, ["rbind", want], "{mode:?}");
        }
        let mut case = Case::new();
        case.task.mounts.push(nomad("sideways"));
        assert!(case.error().contains("sideways"));
    }

    #[test]
    fn a_readonly_mount_is_readonly_and_labelled() {
        let mut case = Case::new();
        case.task.mounts.push(Mount {
            readonly: true,
            selinux_label: "Z".into(),
            ..nomad("")
        });
        assert_eq!(mount(&case, "/data").options, ["rbind", "rprivate", "ro", "Z"]);
    }

    #[test]
    fn the_plugins_label_is_on_directories_but_not_on_devices() {
        let mut case = Case::new();
        case.config.volumes_selinux_label = Some("z".into());
        case.task.mounts.push(Mount {
            host_path: "/dev".into(),
            task_path: "/dev".into(),
            ..nomad("")
        });
        assert!(mount(&case, "/alloc").options.contains(&"z".to_owned()));
        assert!(!mount(&case, "/dev").options.contains(&"z".to_owned()));
        case.options.security.privileged = true;
        assert!(!mount(&case, "/alloc").options.contains(&"z".to_owned()));
    }

    #[test]
    fn volumes_are_bound_and_relative_ones_begin_in_the_task() {
        let mut case = Case::new();
        case.options.storage.volumes = vec!["/srv/www:/www:ro,rslave".into(), "local/conf:/etc/app".into()];
        assert_eq!(mount(&case, "/www").source, "/srv/www");
        assert_eq!(mount(&case, "/www").options, ["rbind", "ro", "rslave"]);
        assert_eq!(mount(&case, "/etc/app").source, "/nomad/alloc1/web/local/conf");
    }

    #[test]
    fn malformed_volumes_are_refused() {
        for bad in ["/data", "a:b", ":/data", "/a:/b:ro:extra", ""] {
            let mut case = Case::new();
            case.options.storage.volumes = vec![bad.into()];
            assert!(case.error().contains("malformed"), "{bad:?}");
        }
    }

    #[test]
    fn without_volumes_enabled_nothing_outside_of_the_allocation_is_mounted() {
        let mut case = Case::new();
        case.config.volumes_enabled = false;
        for bad in ["/etc:/etc", "../../../etc:/x", "../../alloc2/web:/x"] {
            case.options.storage.volumes = vec![bad.into()];
            assert!(case.error().contains("volumes are not enabled"), "{bad}");
        }
        case.options.storage.volumes = vec!["../alloc/data:/x".into(), "local:/y".into()];
        let plan = case.plan().unwrap();
        assert_eq!(
            plan.confined,
            [
                Path::new("/nomad/alloc1/alloc/data"),
                Path::new("/nomad/alloc1/web/local")
            ]
        );
    }

    #[test]
    fn tmpfs_has_a_destination_and_options() {
        let mut case = Case::new();
        case.options.storage.tmpfs = vec!["/scratch".into(), "/run:size=1m,mode=700".into()];
        assert_eq!(mount(&case, "/scratch").options, Vec::<String>::new());
        assert_eq!(mount(&case, "/run").options, ["size=1m", "mode=700"]);
        assert_eq!(mount(&case, "/run").kind, "tmpfs");
        case.options.storage.tmpfs = vec!["scratch".into()];
        assert!(case.error().contains("tmpfs"));
    }

    #[test]
    fn mount_blocks_become_binds_volumes_and_tmpfs() {
        let block = |kind, readonly| MountOptions {
            kind,
            target: "/x".into(),
            readonly,
        };
        let bind = |source: &str, propagation: Option<&str>| MountKind::Bind {
            source: source.into(),
            propagation: propagation.map(str::to_owned),
            selinux: Some("Z".into()),
        };
        let mut case = Case::new();
        case.options.storage.mounts = vec![block(bind("local/a", Some("rslave")), true)];
        let mounted = mount(&case, "/x");
        assert_eq!(mounted.source, "/nomad/alloc1/web/local/a");
        assert_eq!(mounted.options, ["rbind", "ro", "rslave", "Z"]);
        let (size, mode) = (Some(4096), Some(0o700));
        case.options.storage.mounts = vec![block(MountKind::Tmpfs { size, mode }, false)];
        assert_eq!(mount(&case, "/x").options, ["size=4096", "mode=700"]);
        let (name, no_copy) = ("data".to_owned(), true);
        case.options.storage.mounts = vec![block(MountKind::Volume { name, no_copy }, true)];
        let volume = case.container().volumes.remove(0);
        assert_eq!((volume.name.as_str(), volume.dest.as_str()), ("data", "/x"));
        assert_eq!(volume.options, ["ro", "nocopy"]);

        // Named volumes are Podman's own; a path of the host is what the operator can forbid.
        case.config.volumes_enabled = false;
        assert!(case.plan().is_ok());
        case.options.storage.mounts = vec![block(bind("/etc", None), false)];
        assert!(case.error().contains("volumes are not enabled"));
        case.options.storage.mounts = vec![block(bind("local", None), false)];
        assert_eq!(case.plan().unwrap().confined, [Path::new("/nomad/alloc1/web/local")]);
    }

    #[test]
    fn devices_of_the_job_and_of_device_plugins_are_passed() {
        let mut case = Case::new();
        case.options.storage.devices = vec!["/dev/fuse".into(), "nvidia.com/gpu=all".into()];
        let (host_path, task_path) = ("/dev/nvidia0".to_owned(), "/dev/gpu".to_owned());
        case.task.devices.push(Device {
            host_path,
            task_path,
            permissions: "rw".into(),
        });
        let paths: Vec<String> = case.container().devices.into_iter().map(|device| device.path).collect();
        assert_eq!(paths, ["/dev/fuse", "nvidia.com/gpu=all", "/dev/nvidia0:/dev/gpu:rw"]);
    }
}
