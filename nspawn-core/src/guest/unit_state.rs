//! The state of one unit, and what it means for somebody who waits for it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use zbus::{OwnedVariant, Variant};

use crate::name::UnitName;

/// What systemd says of a unit. Source: org.freedesktop.systemd1(5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitState {
    /// Unit name.
    pub name: String,
    /// `Description=`.
    pub description: String,
    /// `loaded`, `not-found`, `bad-setting`, `error`, `masked`.
    pub load_state: String,
    /// Why it could not be loaded.
    pub load_error: String,
    /// `active`, `reloading`, `inactive`, `failed`, `activating`, `deactivating`.
    pub active_state: String,
    /// `running`, `exited`, `dead`, `auto-restart`, ...
    pub sub_state: String,
    /// `success`, `exit-code`, `signal`, `timeout`, ...; empty for units without one.
    pub result: String,
    /// How the main process ended: `CLD_EXITED` 1, `CLD_KILLED` 2, `CLD_DUMPED` 3; 0 where it has not.
    pub exit_code: i32,
    /// Exit status or signal of the main process.
    pub exit_status: i32,
    /// PID of the main process inside the machine; 0 where there is none.
    pub main_pid: u32,
    /// Automatic restarts so far.
    pub restarts: u32,
    /// Whether a job for it is in systemd's queue.
    pub has_job: bool,
    /// Whether it has left the inactive state before.
    pub has_run: bool,
    /// Conditions and asserts that were not met, as they stand in the unit file.
    pub unmet: Vec<String>,
}

/// What a unit's state means for somebody who waits for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// It is not there yet.
    Waiting,
    /// It is active and goes on.
    Active,
    /// It has ended, or there is nothing of it that could end: exit status and the same in words.
    Ended {
        /// 0, the main process's exit status, or 128 and its signal.
        status: u8,
        /// What systemd says of it.
        reason: String,
    },
    /// It never became active: exit status and why.
    Failed {
        /// Never 0.
        status: u8,
        /// What systemd says of it.
        reason: String,
    },
}

impl UnitState {
    /// Reads the answers to `GetAll` of a unit's interfaces.
    pub(super) fn from_properties(name: &UnitName, all: &HashMap<String, OwnedVariant>) -> Self {
        let text = |key: &str| {
            all.get(key)
                .and_then(|v| String::try_from(&**v).ok())
                .unwrap_or_default()
        };
        let number = |key: &str| -> u64 {
            all.get(key)
                .and_then(|v| u64::try_from(&**v).ok())
                .unwrap_or_default()
        };
        let unsigned = |key: &str| {
            all.get(key)
                .and_then(|v| u32::try_from(&**v).ok())
                .unwrap_or_default()
        };
        let signed = |key: &str| {
            all.get(key)
                .and_then(|v| i32::try_from(&**v).ok())
                .unwrap_or_default()
        };
        let load_error = match all.get("LoadError").map(|v| &**v) {
            Some(Variant::Structure(pair)) => pair
                .fields()
                .get(1)
                .and_then(|v| String::try_from(v).ok())
                .unwrap_or_default(),
            _ => String::new(),
        };
        let has_job = match all.get("Job").map(|v| &**v) {
            Some(Variant::Structure(pair)) => {
                pair.fields().first().and_then(|v| u32::try_from(v).ok()) != Some(0)
            }
            _ => false,
        };
        let mut unmet = Vec::new();
        for (tried, met, list) in [
            (
                "ConditionTimestampMonotonic",
                "ConditionResult",
                "Conditions",
            ),
            ("AssertTimestampMonotonic", "AssertResult", "Asserts"),
        ] {
            let is_met = all
                .get(met)
                .and_then(|v| bool::try_from(&**v).ok())
                .unwrap_or(true);
            if number(tried) > 0 && !is_met {
                unmet.extend(
                    all.get(list)
                        .map(|v| unmet_conditions(v))
                        .unwrap_or_default(),
                );
            }
        }
        Self {
            name: name.to_string(),
            description: text("Description"),
            load_state: text("LoadState"),
            load_error,
            active_state: text("ActiveState"),
            sub_state: text("SubState"),
            result: text("Result"),
            exit_code: signed("ExecMainCode"),
            exit_status: signed("ExecMainStatus"),
            main_pid: unsigned("MainPID"),
            restarts: unsigned("NRestarts"),
            has_job,
            has_run: number("InactiveExitTimestampMonotonic") > 0,
            unmet,
        }
    }

    /// What this state means; `booted` says that systemd has started all it was going to start.
    #[must_use]
    pub fn progress(&self, booted: bool) -> Progress {
        if self.load_state != "loaded" {
            let why = if self.load_error.is_empty() {
                String::new()
            } else {
                format!(": {}", self.load_error)
            };
            return Progress::Failed {
                status: 1,
                reason: format!("could not be loaded ({}){why}", self.load_state),
            };
        }
        match self.active_state.as_str() {
            // a oneshot with RemainAfterExit=: nothing of it is running
            "active" if self.sub_state == "exited" => self.ended(),
            "active" | "reloading" | "refreshing" => Progress::Active,
            "failed" => Progress::Failed {
                status: self.exit_value().max(1),
                reason: self.result_text(),
            },
            "inactive" if !self.unmet.is_empty() => Progress::Failed {
                status: 1,
                reason: format!("was not started: {} is not met", self.unmet.join(", ")),
            },
            "inactive" if self.has_run && !self.has_job => self.ended(),
            "inactive" if booted && !self.has_job => Progress::Failed {
                status: 1,
                reason: "was not started: a unit that it requires failed, or nothing asked for it"
                    .into(),
            },
            _ => Progress::Waiting,
        }
    }

    fn ended(&self) -> Progress {
        Progress::Ended {
            status: self.exit_value(),
            reason: self.result_text(),
        }
    }

    /// The unit's own result as an exit status: what systemd calls success is 0.
    fn exit_value(&self) -> u8 {
        const CLD_EXITED: i32 = 1;
        const CLD_KILLED: i32 = 2;
        const CLD_DUMPED: i32 = 3;
        let main = match self.exit_code {
            CLD_EXITED => u8::try_from(self.exit_status).unwrap_or(1),
            CLD_KILLED | CLD_DUMPED => u8::try_from(128 + self.exit_status).unwrap_or(1),
            _ => 0,
        };
        match self.result.as_str() {
            "success" | "" => 0,
            _ => main.max(1),
        }
    }

    /// The unit's result in words.
    #[must_use]
    pub fn result_text(&self) -> String {
        let signal = || {
            let known =
                nix::sys::signal::Signal::try_from(self.exit_status).map(|signal| signal.as_str());
            known.map_or_else(|_| self.exit_status.to_string(), str::to_owned)
        };
        let restarts = if self.restarts > 0 {
            format!(", after {} restarts", self.restarts)
        } else {
            String::new()
        };
        let what = match (self.result.as_str(), self.exit_code) {
            ("success" | "", _) => "ended in success".into(),
            ("exit-code", 1) if self.exit_status != 0 => {
                format!(
                    "failed: its main process exited with status {}{}",
                    self.exit_status,
                    status_name(self.exit_status)
                )
            }
            ("exit-code", _) => "failed: one of its commands exited with an error".into(),
            ("signal", _) => format!("failed: its main process was killed by {}", signal()),
            ("core-dump", _) => format!("failed: its main process dumped core ({})", signal()),
            ("timeout", _) => "failed: it did not start or stop in time".into(),
            ("protocol", _) => "failed: it did not say that it is ready, as its Type= asks".into(),
            ("watchdog", _) => "failed: it missed its watchdog's deadline".into(),
            ("oom-kill", _) => "failed: it ran out of memory".into(),
            ("start-limit-hit", _) => "failed: it was restarted too often".into(),
            ("resources", _) => "failed: systemd could not set it up".into(),
            (other, _) => format!("failed: {other}"),
        };
        what + &restarts
    }
}

/// The exit codes that systemd itself uses before the program runs. Source: systemd.exec(5), table 6.
fn status_name(status: i32) -> &'static str {
    match status {
        200 => " (CHDIR: its working directory cannot be entered)",
        203 => " (EXEC: its program cannot be run)",
        208 => " (STDIN)",
        209 => " (STDOUT)",
        213 => " (PAM or limits)",
        216 => " (GROUP: its group does not exist)",
        217 => " (USER: its user does not exist)",
        218 => " (CAPABILITIES)",
        226 => " (NAMESPACE: its sandbox cannot be set up)",
        228 => " (SECCOMP)",
        238 => " (STATE_DIRECTORY)",
        243 => " (CREDENTIALS)",
        _ => "",
    }
}

/// Reads a list of (type, trigger, negate, parameter, state): a negative state was not met.
fn unmet_conditions(list: &Variant<'_>) -> Vec<String> {
    let Variant::Array(array) = list else {
        return Vec::new();
    };
    let one = |item: &Variant<'_>| {
        let Variant::Structure(fields) = item else {
            return None;
        };
        let [kind, _, negate, parameter, state] = fields.fields() else {
            return None;
        };
        let bang = if bool::try_from(negate).ok()? {
            "!"
        } else {
            ""
        };
        let (kind, parameter) = (
            String::try_from(kind).ok()?,
            String::try_from(parameter).ok()?,
        );
        (i32::try_from(state).ok()? < 0).then(|| format!("{kind}={bang}{parameter}"))
    };
    array.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(active: &str, sub: &str, result: &str, code: i32, status: i32) -> UnitState {
        UnitState {
            load_state: "loaded".into(),
            active_state: active.into(),
            sub_state: sub.into(),
            result: result.into(),
            exit_code: code,
            exit_status: status,
            has_run: true,
            ..UnitState::default()
        }
    }

    #[test]
    fn results_become_exit_statuses() {
        let table = [
            (state("inactive", "dead", "success", 1, 0), Some(0)),
            (state("inactive", "dead", "success", 2, 15), Some(0)),
            (state("active", "exited", "success", 1, 0), Some(0)),
            (state("failed", "failed", "exit-code", 1, 7), Some(7)),
            (state("failed", "failed", "signal", 2, 9), Some(137)),
            (state("failed", "failed", "core-dump", 3, 11), Some(139)),
            (state("failed", "failed", "timeout", 2, 15), Some(143)),
            (state("failed", "failed", "exit-code", 0, 0), Some(1)),
            (state("failed", "failed", "resources", 0, 0), Some(1)),
            (state("active", "running", "success", 0, 0), None),
            (state("activating", "auto-restart", "exit-code", 1, 1), None),
        ];
        for (state, expected) in table {
            let status = match state.progress(true) {
                Progress::Ended { status, .. } | Progress::Failed { status, .. } => Some(status),
                Progress::Active | Progress::Waiting => None,
            };
            assert_eq!(status, expected, "{state:?}");
        }
    }

    #[test]
    fn a_unit_that_never_ran_is_waited_for_until_the_boot_is_done() {
        let fresh = UnitState {
            has_run: false,
            ..state("inactive", "dead", "success", 0, 0)
        };
        assert_eq!(fresh.progress(false), Progress::Waiting);
        assert!(matches!(
            fresh.progress(true),
            Progress::Failed { status: 1, .. }
        ));
        let queued = UnitState {
            has_job: true,
            ..fresh.clone()
        };
        assert_eq!(queued.progress(true), Progress::Waiting);
        let unmet = UnitState {
            unmet: vec!["ConditionPathExists=/x".into()],
            ..fresh
        };
        assert!(
            matches!(unmet.progress(false), Progress::Failed { reason, .. } if reason.contains("=/x is not met"))
        );
    }
}
