//! `[scale]` and `[cell]`: how many cells there are, and how much each has under way.

use std::path::PathBuf;
use std::time::Duration;

use cellbus_bus::ids::ShardCount;
use cellbus_directory::scale::{Mode, Settings};
use cellbus_workflows::autoscale::{Pace, Tuning, size_max};

use crate::config;

/// `[scale]`
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// In force until an operator sets something else.
    pub settings: Settings,
    /// How the policy decides.
    pub tuning: Tuning,
    /// Who starts cells.
    pub launcher: Launcher,
    /// How long the controller that decides may be silent before another takes over.
    pub controller_lease: Duration,
}

/// Who starts cells, and has them leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Nobody: what is decided is only shown.
    None,
    /// The process itself: they run in it.
    Embedded,
    /// The controller: they are its children.
    Process {
        /// Program and arguments of one cell.
        command: Vec<String>,
    },
    /// A command of the operator's own.
    Command {
        /// Program and arguments; `{desired}` stands for how many cells there are to be.
        command: Vec<String>,
        /// How long it may take.
        time_limit: Duration,
    },
    /// A Deployment: they are its pods.
    Kubernetes(Kubernetes),
}

/// `[scale.kubernetes]`: which Deployment, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// Empty: the one of the credentials.
    pub namespace: String,
    /// Its name.
    pub deployment: String,
    /// A file with address and credentials; `None`: those that a pod has.
    pub kubeconfig: Option<PathBuf>,
    /// How long the API server may take for one turn.
    pub time_limit: Duration,
}

impl Launcher {
    /// What this build lacks for it, in words for an operator.
    pub(super) fn lacks(&self) -> Option<&'static str> {
        match self {
            Self::Kubernetes(_) if !cfg!(feature = "kubernetes") => {
                Some("this build has no launcher for Kubernetes: build it with `--features kubernetes`")
            }
            Self::None | Self::Embedded | Self::Process { .. } | Self::Command { .. } | Self::Kubernetes(_) => None,
        }
    }
}

impl super::Settings {
    pub(super) fn scale(&self, cells: u32, shards: ShardCount, wrong: &mut impl FnMut(&str, String)) -> Scale {
        let most = size_max(shards);
        // `cells` is what a process begins with: by itself the size does not fall below it.
        let min = self.u32_if_set("scale.min").unwrap_or_else(|| cells.min(most));
        let max = self.u32_if_set("scale.max").unwrap_or_else(|| min.saturating_mul(4).max(8).min(most).max(min));
        if min > max {
            wrong("scale.min", format!("it is {min}, and scale.max is {max}: the least is above the most"));
        }
        let words = |key: &str| self.text(key).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let command = words("scale.command");
        let launcher = match self.text("scale.launcher").as_str() {
            "embedded" => Launcher::Embedded,
            "process" => Launcher::Process { command },
            "command" => Launcher::Command { command, time_limit: self.time("scale.command_timeout") },
            "kubernetes" => Launcher::Kubernetes(Kubernetes {
                namespace: self.text("scale.kubernetes.namespace"),
                deployment: self.text("scale.kubernetes.deployment"),
                kubeconfig: self.path("scale.kubernetes.kubeconfig"),
                time_limit: self.time("scale.kubernetes.timeout"),
            }),
            _ => Launcher::None,
        };
        match &launcher {
            Launcher::Process { command } | Launcher::Command { command, .. } if command.is_empty() => {
                wrong("scale.command", "this launcher needs a command".to_owned());
            }
            Launcher::Command { command, .. } if !command.iter().any(|word| word.contains("{desired}")) => {
                wrong(
                    "scale.command",
                    "it does not say {desired}, which stands for how many cells there are to be".to_owned(),
                );
            }
            Launcher::Kubernetes(of) => {
                for (key, name, may_be_empty) in [
                    ("scale.kubernetes.deployment", &of.deployment, false),
                    ("scale.kubernetes.namespace", &of.namespace, true),
                ] {
                    if !(is_name(name) || may_be_empty && name.is_empty()) {
                        wrong(key, format!("`{name}` is no name in Kubernetes: lower case letters, digits, - and ."));
                    }
                }
            }
            Launcher::None | Launcher::Embedded | Launcher::Process { .. } | Launcher::Command { .. } => {}
        }
        let pace = |of: &str| Pace {
            window: self.time(&format!("scale.{of}_window")),
            step_max: self.u32(&format!("scale.{of}_step_max")),
            pause: self.time(&format!("scale.{of}_pause")),
        };
        Scale {
            settings: Settings {
                mode: self.text("scale.mode").parse().unwrap_or(Mode::Auto),
                cells,
                min,
                max,
                drain_target: self.time("scale.drain_target"),
                latency_objective: self.time("scale.latency_objective"),
            },
            tuning: Tuning {
                target_utilisation: self.ratio("scale.target_utilisation"),
                out: pace("out"),
                r#in: pace("in"),
                rate_window: self.time("scale.rate_window"),
                stale_after: self.time("scale.stale_after"),
                trial: self.time("scale.trial"),
                undo_hold: self.time("scale.undo_hold"),
            },
            launcher,
            controller_lease: self.time("scale.controller_lease"),
        }
    }
}

/// Whether Kubernetes takes it as the name of a thing (RFC 1123).
fn is_name(name: &str) -> bool {
    let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    outer(name.chars().next()) && outer(name.chars().next_back()) && name.chars().all(inner)
}

impl Default for Scale {
    fn default() -> Self {
        config::Config::load(config::Sources::default()).expect("the defaults are sound, which a test checks").scale
    }
}
