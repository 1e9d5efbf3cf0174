//! The container's first process: name, program, environment, user, directory, host name.

use super::{Inputs, Plan};

/// Fills everything that execve(2) would want.
pub(super) fn fill(inputs: Inputs<'_>, plan: &mut Plan) {
    let Inputs { task, options, .. } = inputs;
    let spec = &mut plan.container;
    spec.name = task.container_name();
    spec.command = (!options.command.is_empty()).then(|| options.command.clone());
    spec.entrypoint = options.entrypoint.clone();
    spec.env = task.env.clone();
    for (label, port) in &options.network.port_map {
        // The old port_map decides which port the program must listen on.
        spec.env
            .insert(format!("NOMAD_PORT_{}", variable_name(label)), port.to_string());
    }
    spec.user = (!task.user.is_empty()).then(|| task.user.clone());
    spec.work_dir = options.working_dir.clone();
    spec.hostname = options.hostname.clone();
    spec.terminal = options.tty;
    spec.stdin = options.interactive;
    spec.timezone = options.timezone.clone();
    spec.annotations = options.annotations.clone();
    spec.init = options.init;
    spec.init_path = options.init_path.clone();
}

/// A port label as part of an environment variable's name.
fn variable_name(label: &str) -> String {
    label
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::spec::fixture::Case;

    #[test]
    fn what_the_task_does_not_say_is_left_to_the_image() {
        let spec = Case::new().container();
        assert_eq!(
            (spec.command, spec.entrypoint, spec.user, spec.work_dir),
            (None, None, None, None)
        );
        assert_eq!((spec.hostname, spec.init, spec.terminal), (None, false, false));
    }

    #[test]
    fn what_the_task_says_is_passed_on_unchanged() {
        let mut case = Case::new();
        case.options.command = vec!["sh".into(), "-c".into(), "echo $HOME".into()];
        case.options.entrypoint = Some(vec!["/init".into()]);
        case.options.working_dir = Some("/srv".into());
        case.options.hostname = Some("web1".into());
        case.options.tty = true;
        case.task.user = "1000:1000".into();
        case.task.env.insert("A".into(), "b=c".into());
        let spec = case.container();
        assert_eq!(spec.command.unwrap(), ["sh", "-c", "echo $HOME"]);
        assert_eq!(spec.entrypoint.unwrap(), ["/init"]);
        assert_eq!(
            (spec.work_dir.as_deref(), spec.hostname.as_deref()),
            (Some("/srv"), Some("web1"))
        );
        assert_eq!((spec.user.as_deref(), spec.terminal), (Some("1000:1000"), true));
        assert_eq!(spec.env["A"], "b=c");
    }

    #[test]
    fn a_mapped_port_is_told_to_the_program() {
        let mut case = Case::new();
        case.options.network.port_map.insert("http-alt".into(), 8080);
        case.task
            .resources
            .networks
            .push(crate::nomad_task::TaskNetwork::default());
        assert_eq!(case.container().env["NOMAD_PORT_http_alt"], "8080");
    }
}
