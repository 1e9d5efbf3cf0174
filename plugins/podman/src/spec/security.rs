//! Privileges and namespaces: capabilities, security options, IPC and user namespaces.

use super::{Inputs, Plan, SpecError};
use crate::config::capability;
use crate::podman::{AutoUserNs, ContainerSpec, IdMap, IdMappings, Namespace};

/// Fills everything about what the container may do.
pub(super) fn fill(inputs: Inputs<'_>, plan: &mut Plan) -> Result<(), SpecError> {
    let security = &inputs.options.security;
    let spec = &mut plan.container;
    spec.privileged = security.privileged;
    spec.cap_add = security.cap_add.clone();
    spec.cap_drop = security.cap_drop.clone();
    spec.selinux_opts = security.selinux_opts.clone();
    spec.apparmor_profile = security.apparmor_profile.clone();
    for text in &security.security_opt {
        security_opt(spec, text)?;
    }
    spec.groups = security.group_add.clone();
    spec.oci_runtime = security.runtime.clone();
    gates(inputs)?;
    ipc(inputs, spec)?;
    spec.pidns = own_or_joined(inputs, "pid_mode", security.pid_mode.as_deref())?;
    spec.utsns = host_or_private("uts_mode", security.uts_mode.as_deref())?;
    spec.cgroupns = host_or_private("cgroupns", security.cgroupns.as_deref())?;
    if let Some(text) = &security.userns {
        let (namespace, mappings) = userns(text)?;
        spec.userns = Some(namespace);
        spec.idmappings = mappings;
    }
    Ok(())
}

/// What the operator does not let tasks have.
fn gates(inputs: Inputs<'_>) -> Result<(), SpecError> {
    let (security, allowed) = (&inputs.options.security, &inputs.config.allowed);
    let privileged = |option: &'static str, value: &str| SpecError::Forbidden {
        option,
        value: value.to_owned(),
        way_out: "the operator allows it with allow_privileged = true in the plugin's config".to_owned(),
    };
    if !allowed.privileged {
        if security.privileged {
            return Err(privileged("privileged", "true"));
        }
        for (option, mode) in [("pid_mode", &security.pid_mode), ("ipc_mode", &security.ipc_mode)] {
            let foreign =
                |mode: &&String| **mode == "host" || mode.starts_with("ns:") || mode.starts_with("container:");
            if let Some(mode) = mode.as_ref().filter(foreign) {
                return Err(privileged(option, mode));
            }
        }
    }
    if let Some(caps) = &allowed.caps {
        let beyond = |name: &&String| !caps.contains(&capability(name));
        if let Some(name) = security.cap_add.iter().find(beyond) {
            let caps: Vec<&str> = caps.iter().map(String::as_str).collect();
            return Err(SpecError::Forbidden {
                option: "cap_add",
                value: name.clone(),
                way_out: format!("allow_caps in the plugin's config has {}", caps.join(", ")),
            });
        }
    }
    if let Some(runtime) = security
        .runtime
        .as_ref()
        .filter(|name| !allowed.runtimes.contains(*name))
    {
        let runtimes: Vec<&str> = allowed.runtimes.iter().map(String::as_str).collect();
        return Err(SpecError::Forbidden {
            option: "runtime",
            value: runtime.clone(),
            way_out: format!("allow_runtimes in the plugin's config has {}", runtimes.join(", ")),
        });
    }
    Ok(())
}

fn own_or_joined(inputs: Inputs<'_>, option: &'static str, mode: Option<&str>) -> Result<Option<Namespace>, SpecError> {
    let Some(mode) = mode else { return Ok(None) };
    Ok(Some(match mode.split_once(':') {
        None if matches!(mode, "host" | "private") => Namespace::of(mode),
        Some(("container", id)) => Namespace::with("container", id),
        Some(("ns", path)) => Namespace::with("path", path),
        Some(("task", name)) => Namespace::with("container", inputs.task.container_name_of(name)),
        None | Some(_) => {
            return Err(SpecError::NamespaceMode {
                option,
                mode: mode.to_owned(),
                known: "host, private, container:<id>, ns:<path>, task:<name>",
            });
        }
    }))
}

fn host_or_private(option: &'static str, mode: Option<&str>) -> Result<Option<Namespace>, SpecError> {
    match mode {
        None => Ok(None),
        Some(mode @ ("host" | "private")) => Ok(Some(Namespace::of(mode))),
        Some(mode) => Err(SpecError::NamespaceMode {
            option,
            mode: mode.to_owned(),
            known: "host, private",
        }),
    }
}

/// One `name=value` (or `name:value`) as `podman run --security-opt` takes it, with the annotation that keeps it in
/// the container's description.
fn security_opt(spec: &mut ContainerSpec, text: &str) -> Result<(), SpecError> {
    let (name, value) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .unwrap_or((text, ""));
    let annotation = |name: &str| format!("io.podman.annotations.{name}");
    match (name, value) {
        ("no-new-privileges", "" | "true") => spec.no_new_privileges = true,
        ("no-new-privileges", "false") => spec.no_new_privileges = false,
        ("label", value) if !value.is_empty() => {
            spec.selinux_opts.push(value.to_owned());
            spec.annotations
                .insert(annotation("label"), spec.selinux_opts.join(",label="));
        }
        ("apparmor", value) if !value.is_empty() => {
            spec.apparmor_profile = Some(value.to_owned());
            spec.annotations.insert(annotation("apparmor"), value.to_owned());
        }
        ("seccomp", value) if !value.is_empty() => {
            spec.seccomp_profile_path = Some(value.to_owned());
            spec.annotations.insert(annotation("seccomp"), value.to_owned());
        }
        ("proc-opts", value) if !value.is_empty() => {
            spec.procfs_opts = value.split(',').map(str::to_owned).collect();
        }
        ("mask", value) if !value.is_empty() => spec.mask.extend(value.split(':').map(str::to_owned)),
        ("unmask", value) if !value.is_empty() => spec.unmask.extend(value.split(':').map(str::to_owned)),
        ("systempaths", "unconfined") => spec.unmask.push("ALL".to_owned()),
        _ => return Err(SpecError::SecurityOpt { text: text.to_owned() }),
    }
    Ok(())
}

fn ipc(inputs: Inputs<'_>, spec: &mut ContainerSpec) -> Result<(), SpecError> {
    let Some(mode) = inputs.options.security.ipc_mode.as_deref() else {
        return Ok(());
    };
    let own_shm = matches!(mode, "private" | "shareable");
    if inputs.options.storage.shm_size.is_some() && !own_shm {
        return Err(SpecError::ShmSize { mode: mode.to_owned() });
    }
    spec.ipcns = Some(match mode.split_once(':') {
        None if own_shm || matches!(mode, "host" | "none") => Namespace::of(mode),
        Some(("container", id)) => Namespace::with("container", id),
        Some(("ns", path)) => Namespace::with("path", path),
        Some(("task", name)) => Namespace::with("container", inputs.task.container_name_of(name)),
        None | Some(_) => return Err(SpecError::IpcMode { mode: mode.to_owned() }),
    });
    Ok(())
}

/// A user namespace mode: `host`, `private`, `nomap`, `ns:PATH`, `keep-id[:…]` or `auto[:size=N,uidmapping=C:H:N,gidmapping=…]`.
fn userns(text: &str) -> Result<(Namespace, Option<IdMappings>), SpecError> {
    let error = |reason| SpecError::Userns {
        text: text.to_owned(),
        reason,
    };
    let (mode, value) = text.split_once(':').unwrap_or((text, ""));
    match mode {
        "host" | "nomap" | "private" => Ok((Namespace::with(mode, value), None)),
        "ns" => Ok((Namespace::with("path", value), None)),
        "keep-id" => Ok((Namespace::with(mode, value), Some(IdMappings::default()))),
        "auto" => {
            let mut wishes = AutoUserNs::default();
            for option in value.split(',').filter(|option| !option.is_empty()) {
                match option.split_once('=') {
                    Some(("size", size)) => {
                        wishes.size = Some(size.parse().map_err(|_| error("size is not a number"))?);
                    }
                    Some(("uidmapping", map)) => wishes
                        .additional_uid_mappings
                        .push(id_map(map).ok_or_else(|| error("uidmapping is not CONTAINER_ID:HOST_ID:COUNT"))?),
                    Some(("gidmapping", map)) => wishes
                        .additional_gid_mappings
                        .push(id_map(map).ok_or_else(|| error("gidmapping is not CONTAINER_ID:HOST_ID:COUNT"))?),
                    Some(_) | None => return Err(error("auto knows size, uidmapping and gidmapping")),
                }
            }
            let mappings = IdMappings {
                auto_user_ns: true,
                uid_map: wishes.additional_uid_mappings.clone(),
                gid_map: wishes.additional_gid_mappings.clone(),
                auto_user_ns_opts: wishes,
            };
            Ok((Namespace::with(mode, value), Some(mappings)))
        }
        _ => Err(error("known are auto, host, keep-id, nomap, private and ns:PATH")),
    }
}

fn id_map(text: &str) -> Option<IdMap> {
    let parts: Vec<u32> = text.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    match parts[..] {
        [container_id, host_id, size] => Some(IdMap {
            container_id,
            host_id,
            size,
        }),
        [container_id, host_id] => Some(IdMap {
            container_id,
            host_id,
            size: 1,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::fixture::Case;

    fn with_opt(opt: &str) -> Case {
        let mut case = Case::new();
        case.options.security.security_opt = vec![opt.into()];
        case
    }

    #[test]
    fn security_options_land_in_their_fields() {
        assert!(with_opt("no-new-privileges").container().no_new_privileges);
        assert!(with_opt("no-new-privileges:true").container().no_new_privileges);
        assert_eq!(with_opt("label=disable").container().selinux_opts, ["disable"]);
        assert_eq!(
            with_opt("apparmor=unconfined").container().apparmor_profile.as_deref(),
            Some("unconfined")
        );
        assert_eq!(
            with_opt("seccomp:unconfined")
                .container()
                .seccomp_profile_path
                .as_deref(),
            Some("unconfined")
        );
        assert_eq!(
            with_opt("proc-opts=hidepid=2,ro").container().procfs_opts,
            ["hidepid=2", "ro"]
        );
        assert_eq!(with_opt("mask=/a:/b").container().mask, ["/a", "/b"]);
        assert_eq!(with_opt("unmask=ALL").container().unmask, ["ALL"]);
        assert_eq!(with_opt("systempaths=unconfined").container().unmask, ["ALL"]);
        for bad in ["apparmor", "label=", "systempaths=x", "nonsense", "x=y"] {
            assert!(with_opt(bad).error().contains("invalid security_opt"), "{bad}");
        }
    }

    #[test]
    fn capabilities_and_privileges_are_passed_on() {
        let mut case = Case::new();
        case.options.security.cap_add = vec!["SYS_TIME".into()];
        case.options.security.cap_drop = vec!["MKNOD".into()];
        case.options.security.privileged = true;
        case.options.storage.readonly_rootfs = true;
        let spec = case.container();
        assert_eq!(
            (spec.cap_add, spec.cap_drop),
            (vec!["SYS_TIME".into()], vec!["MKNOD".into()])
        );
        assert!(spec.privileged && spec.read_only_filesystem);
    }

    #[test]
    fn ipc_modes_become_namespaces() {
        for (mode, nsmode, value) in [
            ("host", "host", ""),
            ("private", "private", ""),
            ("shareable", "shareable", ""),
            ("none", "none", ""),
            ("container:abc", "container", "abc"),
            ("ns:/proc/1/ns/ipc", "path", "/proc/1/ns/ipc"),
            ("task:db", "container", "db-alloc1"),
        ] {
            let mut case = Case::new();
            case.options.security.ipc_mode = Some(mode.into());
            let ipc = case.container().ipcns.unwrap();
            assert_eq!((ipc.nsmode.as_str(), ipc.value.as_str()), (nsmode, value));
        }
        let mut case = Case::new();
        case.options.security.ipc_mode = Some("shared".into());
        assert!(case.error().contains("invalid ipc_mode"));
    }

    #[test]
    fn the_operator_may_forbid_what_leads_out_of_the_container() {
        let mut case = Case::new();
        case.config.allowed.privileged = false;
        assert!(case.plan().is_ok());
        case.options.security.privileged = true;
        assert!(
            case.error()
                .contains("privileged = \"true\" is not allowed on this client")
        );
        case.options.security.privileged = false;
        for foreign in ["host", "ns:/proc/1/ns/pid", "container:abc"] {
            case.options.security.pid_mode = Some(foreign.into());
            assert!(case.error().contains("pid_mode"), "{foreign}");
            case.options.security.pid_mode = None;
            case.options.security.ipc_mode = Some(foreign.into());
            assert!(case.error().contains("ipc_mode"), "{foreign}");
            case.options.security.ipc_mode = None;
        }
        for own in ["private", "task:db"] {
            (case.options.security.pid_mode, case.options.security.ipc_mode) = (Some(own.into()), Some(own.into()));
            assert!(case.plan().is_ok(), "{own}");
        }
    }

    #[test]
    fn capabilities_and_runtimes_come_from_the_operators_lists() {
        let mut case = Case::new();
        case.options.security.cap_add = vec!["cap_sys_admin".into()];
        case.options.security.runtime = Some("crun".into());
        assert_eq!(case.container().oci_runtime.as_deref(), Some("crun"));
        case.config.allowed.caps = Some(["SYS_ADMIN".to_owned()].into());
        assert!(case.plan().is_ok());
        case.options.security.cap_add.push("all".into());
        assert!(case.error().contains("cap_add = \"all\" is not allowed on this client"));
        case.options.security.cap_add.clear();
        case.options.security.runtime = Some("/tmp/evil".into());
        assert!(
            case.error()
                .contains("allow_runtimes in the plugin's config has crun, runc")
        );
    }

    #[test]
    fn namespaces_of_processes_and_names_are_chosen_by_mode() {
        for (mode, nsmode, value) in [("host", "host", ""), ("task:db", "container", "db-alloc1")] {
            let mut case = Case::new();
            case.options.security.pid_mode = Some(mode.into());
            assert_eq!(case.container().pidns, Some(Namespace::with(nsmode, value)));
        }
        let mut case = Case::new();
        (case.options.security.uts_mode, case.options.security.cgroupns) =
            (Some("host".into()), Some("private".into()));
        let spec = case.container();
        assert_eq!(
            (spec.utsns, spec.cgroupns),
            (Some(Namespace::of("host")), Some(Namespace::of("private")))
        );
        case.options.security.uts_mode = Some("shared".into());
        assert!(case.error().contains("uts_mode"));
    }

    #[test]
    fn shm_size_needs_a_shm_of_its_own() {
        let mut case = Case::new();
        case.options.storage.shm_size = Some(1 << 20);
        assert_eq!(case.container().shm_size, Some(1 << 20));
        for (mode, fine) in [("private", true), ("shareable", true), ("host", false), ("none", false)] {
            case.options.security.ipc_mode = Some(mode.into());
            assert_eq!(case.plan().is_ok(), fine, "{mode}");
        }
    }

    #[test]
    fn user_namespaces_are_parsed() {
        let (namespace, mappings) = userns("auto:size=65536,uidmapping=0:1000:10").unwrap();
        assert_eq!(namespace.nsmode, "auto");
        let mappings = mappings.unwrap();
        assert!(mappings.auto_user_ns);
        assert_eq!(mappings.auto_user_ns_opts.size, Some(65536));
        assert_eq!(
            mappings.uid_map,
            [IdMap {
                container_id: 0,
                host_id: 1000,
                size: 10
            }]
        );
        assert_eq!(
            userns("keep-id:uid=200").unwrap().0,
            Namespace::with("keep-id", "uid=200")
        );
        assert_eq!(
            userns("ns:/proc/1/ns/user").unwrap().0,
            Namespace::with("path", "/proc/1/ns/user")
        );
        for bad in [
            "auto:size=x",
            "auto:nonsense=1",
            "auto:size",
            "auto:uidmapping=1:x:1",
            "sideways",
        ] {
            assert!(matches!(userns(bad), Err(SpecError::Userns { .. })), "{bad}");
        }
    }
}
