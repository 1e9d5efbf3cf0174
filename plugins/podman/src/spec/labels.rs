//! Labels of a container: the job's, those the operator chose by glob, and ours, by which leftovers are found.

use super::{Inputs, Plan};

/// Carried by every container of this driver.
pub const DRIVER_LABEL: &str = "nomad.podman.driver";
/// What [`DRIVER_LABEL`] says.
pub const DRIVER_LABEL_VALUE: &str = "podman";
/// The run of the task that the container belongs to.
pub const TASK_ID_LABEL: &str = "nomad.podman.task_id";
/// The allocation that the container belongs to.
pub const ALLOC_ID_LABEL: &str = "nomad.podman.alloc_id";

/// The node whose task the container runs.
pub const NODE_ID_LABEL: &str = "nomad.podman.node_id";

/// Fills the labels. Ours win over the job's: a job must not be able to disguise its container.
pub(super) fn fill(inputs: Inputs<'_>, plan: &mut Plan) {
    let Inputs {
        task, options, config, ..
    } = inputs;
    let labels = &mut plan.container.labels;
    labels.extend(options.labels.clone());
    let chosen = [
        ("job_name", &task.job_name),
        ("job_id", &task.job_id),
        ("task_group_name", &task.group),
        ("task_name", &task.name),
        ("namespace", &task.namespace),
        ("node_name", &task.node_name),
        ("node_id", &task.node_id),
    ];
    if !config.extra_labels.is_empty() {
        // The prefix is the one that users' dashboards know. Docker's driver removes containers with this alloc_id
        // label when it is pointed at Podman's socket, so it is there only when the operator asks for extra labels.
        labels.insert("com.hashicorp.nomad.alloc_id".to_owned(), task.alloc_id.clone());
    }
    for (name, value) in chosen {
        if config.extra_labels.iter().any(|glob| matches(glob, name)) {
            labels.insert(format!("com.hashicorp.nomad.{name}"), value.clone());
        }
    }
    let ours = [
        (DRIVER_LABEL, DRIVER_LABEL_VALUE),
        (TASK_ID_LABEL, &task.id),
        (ALLOC_ID_LABEL, &task.alloc_id),
        ("nomad.podman.task", &task.name),
        ("nomad.podman.namespace", &task.namespace),
        ("nomad.podman.job", &task.job_id),
        (NODE_ID_LABEL, &task.node_id),
    ];
    labels.extend(ours.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

/// Whether `text` matches a glob whose only wildcard is `*`.
fn matches(glob: &str, text: &str) -> bool {
    let Some((head, mut rest)) = glob.split_once('*') else {
        return glob == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    while let Some((part, more)) = rest.split_once('*') {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
        rest = more;
    }
    text.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::fixture::Case;

    #[test]
    fn globs_match_as_shells_do() {
        for (glob, text, want) in [
            ("job_name", "job_name", true),
            ("job_*", "job_id", true),
            ("*", "node_id", true),
            ("*_name", "task_group_name", true),
            ("t*_*name", "task_group_name", true),
            ("job", "job_id", false),
            ("node_*", "job_id", false),
            ("*_id", "job_name", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(matches(glob, text), want, "{glob} on {text}");
        }
    }

    #[test]
    fn our_labels_are_always_there_and_cannot_be_forged() {
        let mut case = Case::new();
        case.options.labels.insert(TASK_ID_LABEL.into(), "somebody-else".into());
        case.options.labels.insert("team".into(), "blue".into());
        let labels = case.container().labels;
        assert_eq!(labels[DRIVER_LABEL], DRIVER_LABEL_VALUE);
        assert_eq!(labels[TASK_ID_LABEL], "alloc1/web/1");
        assert_eq!(labels["team"], "blue");
        assert!(!labels.keys().any(|label| label.starts_with("com.hashicorp")));
    }

    #[test]
    fn extra_labels_are_chosen_by_glob() {
        let mut case = Case::new();
        case.config.extra_labels = vec!["job_*".into()];
        case.task.job_name = "shop".into();
        let labels = case.container().labels;
        assert_eq!(labels["com.hashicorp.nomad.job_name"], "shop");
        assert_eq!(labels["com.hashicorp.nomad.alloc_id"], "alloc1");
        assert!(!labels.contains_key("com.hashicorp.nomad.task_name"));
    }
}
