//! Profiles as the OCI runtime specification writes them, and what policies they mean.

use berth_base::error::{Error, Result};
use serde::{Deserialize, Serialize};

use super::bpf::{ALLOW, ARCHES, Arch, Condition, EPERM, ERRNO, Operator, Policy, Rule};

/// `linux.seccomp` of the OCI runtime specification. Calls of the machine's own architecture, and
/// of those that the profile names, follow its rules; with any other architecture they fail with
/// ENOSYS.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    pub default_action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    #[serde(default)]
    pub architectures: Vec<String>,
    #[serde(default)]
    pub syscalls: Vec<ProfileRule>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProfileRule {
    pub names: Vec<String>,
    pub action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    #[serde(default)]
    pub args: Vec<ProfileCondition>,
}

impl ProfileRule {
    pub(super) fn allow(names: Vec<String>) -> Self {
        Self { names, action: Action::Allow, errno_ret: None, args: Vec::new() }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProfileCondition {
    pub index: u32,
    pub value: u64,
    #[serde(default)]
    pub value_two: u64,
    pub op: Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Action {
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
}

impl Action {
    /// SECCOMP_RET_* of linux/seccomp.h. The low 16 bits are the error number, EPERM by default.
    fn return_value(self, errno: Option<u32>) -> u32 {
        let data = errno.unwrap_or(EPERM) & 0xffff;
        match self {
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
            Self::Trap => 0x0003_0000,
            Self::Errno => ERRNO | data,
            Self::Trace => 0x7ff0_0000 | data,
            Self::Log => 0x7ffc_0000,
            Self::Allow => ALLOW,
        }
    }
}

impl Profile {
    /// The architectures whose calls follow the rules.
    pub(super) fn arches(&self) -> Vec<&'static Arch> {
        let named = |arch: &Arch| self.architectures.iter().any(|name| name == arch.name);
        ARCHES
            .iter()
            .enumerate()
            .filter(|(index, arch)| *index == 0 || named(arch))
            .map(|(_, arch)| arch)
            .collect()
    }

    /// The policy that the profile means.
    ///
    /// # Errors
    /// `InvalidArgument` for a condition on a seventh argument.
    pub(super) fn policy(&self) -> Result<Policy> {
        let default = self.default_action.return_value(self.default_errno_ret);
        let mut rules = Vec::new();
        for rule in &self.syscalls {
            let conditions = rule.args.iter().map(condition).collect::<Result<_>>()?;
            rules.push(Rule {
                names: rule.names.clone(),
                conditions,
                return_value: rule.action.return_value(rule.errno_ret),
            });
        }
        Ok(Policy { default, unknown: default, rules })
    }
}

fn condition(given: &ProfileCondition) -> Result<Condition> {
    match given.index {
        0..=5 => Ok(Condition {
            argument: given.index,
            operator: given.op,
            value: given.value,
            masked: given.value_two,
        }),
        index => Err(Error::invalid(format!(
            "args: a system call has arguments 0 to 5, and no argument {index}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use syscalls::Sysno;

    use super::{
        super::bpf::{compile, tests::run},
        *,
    };

    fn id(sysno: Sysno) -> u32 {
        sysno.id() as u32
    }

    #[test]
    fn every_operator_compares_64_bits() {
        let big = 5 << 32 | 7;
        for (op, holds) in [
            ("EQ", &(|value: u64| value == big) as &dyn Fn(u64) -> bool),
            ("NE", &|value| value != big),
            ("LT", &|value| value < big),
            ("LE", &|value| value <= big),
            ("GT", &|value| value > big),
            ("GE", &|value| value >= big),
            ("MASKED_EQ", &|value| value & big == 4 << 32 | 2),
        ] {
            let arg = format!(
                r#"{{"index":2,"value":{big},"valueTwo":{},"op":"SCMP_CMP_{op}"}}"#,
                4_u64 << 32 | 2
            );
            let rule = format!(r#"{{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{arg}]}}"#);
            let text = format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":13,"syscalls":[{rule}]}}"#
            );
            let profile: Profile = serde_json::from_str(&text).unwrap();
            let program = compile(&profile.policy().unwrap(), &profile.arches()).unwrap();
            for high in [0_u64, 4, 5, 6, u64::from(u32::MAX)] {
                for low in [0_u64, 2, 6, 7, 8, u64::from(u32::MAX)] {
                    let value = high << 32 | low;
                    let expected = if holds(value) { ALLOW } else { ERRNO | 13 };
                    assert_eq!(
                        run(&program, id(Sysno::read), [0, 0, value, 0, 0, 0], ARCHES[0].audit),
                        expected,
                        "{op} {value:#x}"
                    );
                }
            }
        }
    }

    #[test]
    fn rules_of_one_call_are_tried_in_their_order_and_all_conditions_must_hold() {
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
            "syscalls":[
            {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS","args":[
                {"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":9,"op":"SCMP_CMP_GE"}]},
            {"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":3,"args":[
                {"index":0,"value":2,"op":"SCMP_CMP_EQ"}]},
            {"names":["sethostname","no_such_call"],"action":"SCMP_ACT_ERRNO"}]}"#;
        let profile: Profile = serde_json::from_str(text).unwrap();
        let program = compile(&profile.policy().unwrap(), &profile.arches()).unwrap();
        let kill = |a, b| run(&program, id(Sysno::kill), [a, b, 0, 0, 0, 0], ARCHES[0].audit);
        assert_eq!(
            (kill(1, 9), kill(1, 8), kill(2, 9), kill(3, 9)),
            (0x8000_0000, ALLOW, ERRNO | 3, ALLOW)
        );
        assert_eq!(run(&program, id(Sysno::sethostname), [0; 6], ARCHES[0].audit), ERRNO | EPERM);
        assert_eq!(run(&program, id(Sysno::read), [0; 6], ARCHES[0].audit), ALLOW);
    }
}
