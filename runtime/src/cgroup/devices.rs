//! Which devices a cgroup may use: rules of the controller on v1, a program that the kernel runs at every open and mknod on v2.

use berth_shim::spec::DeviceAccess;
use cgroups_rs::fs::{
    Cgroup, Subsystem,
    devices::{DevicePermissions, DeviceType, DevicesController},
};
use serde::{Deserialize, Serialize};

/// mknod of anything and the nodes of /dev (OCI runtime specification, "Default Devices", and what containerd allows besides).
const ALLOWED: [(DeviceType, i64, i64, &str); 9] = [
    (DeviceType::Char, -1, -1, "m"),
    (DeviceType::Block, -1, -1, "m"),
    (DeviceType::Char, 1, 3, "rwm"),
    (DeviceType::Char, 1, 5, "rwm"),
    (DeviceType::Char, 1, 7, "rwm"),
    (DeviceType::Char, 1, 8, "rwm"),
    (DeviceType::Char, 1, 9, "rwm"),
    (DeviceType::Char, 5, -1, "rwm"),
    (DeviceType::Char, 136, -1, "rwm"),
];

/// What a container may do with devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    /// Privileged.
    All,
    /// The nodes that every container has, and these.
    Only(Vec<DeviceRule>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceRule {
    pub block: bool,
    pub major: i64,
    pub minor: i64,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

impl Devices {
    /// For another OCI runtime, which sets them anew.
    pub(crate) fn accesses(&self) -> Vec<DeviceAccess> {
        let all =
            |allow| DeviceAccess { allow, kind: "a".to_owned(), major: None, minor: None, access: "rwm".to_owned() };
        let Self::Only(rules) = self else { return vec![all(true)] };
        let number = |number: i64| (number >= 0).then_some(number);
        let rules = allowed(rules).map(|(kind, major, minor, access)| DeviceAccess {
            allow: true,
            kind: if kind == DeviceType::Block { "b" } else { "c" }.to_owned(),
            major: number(major),
            minor: number(minor),
            access: access.to_owned(),
        });
        [all(false)].into_iter().chain(rules).collect()
    }
}

/// What is allowed, the own nodes first; -1 is any number.
fn allowed(rules: &[DeviceRule]) -> impl Iterator<Item = (DeviceType, i64, i64, &str)> {
    let asked = rules.iter().map(|DeviceRule { block, major, minor, permissions }| {
        let kind = if *block { DeviceType::Block } else { DeviceType::Char };
        (kind, *major, *minor, permissions.as_str())
    });
    ALLOWED.into_iter().chain(asked)
}

/// Writes the files of v1.
pub(super) fn restrict(cgroup: &Cgroup, rules: &[DeviceRule]) -> anyhow::Result<()> {
    let Some(devices) = cgroup.subsystems().iter().find_map(|subsystem| match subsystem {
        Subsystem::Devices(devices) => Some(devices),
        _ => None,
    }) else {
        return Ok(());
    };
    let devices: &DevicesController = devices;
    devices.deny_device(DeviceType::All, -1, -1, &DevicePermissions::all())?;
    for (kind, major, minor, permissions) in allowed(rules) {
        devices.allow_device(kind, major, minor, &DevicePermissions::from_str(permissions)?)?;
    }
    Ok(())
}

/// `struct bpf_insn` of linux/bpf.h: opcode, registers (destination low), offset, immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction(u8, u8, i16, i32);

/// The eBPF instructions that are needed; R0 is the answer, R1 the context.
mod op {
    use super::Instruction;

    pub(super) fn load(to: u8, from: u8, offset: i16) -> Instruction {
        Instruction(0x61, from << 4 | to, offset, 0)
    }
    pub(super) fn copy(to: u8, from: u8) -> Instruction {
        Instruction(0xbf, from << 4 | to, 0, 0)
    }
    pub(super) fn set(to: u8, value: i32) -> Instruction {
        Instruction(0xb7, to, 0, value)
    }
    pub(super) fn and(to: u8, value: i32) -> Instruction {
        Instruction(0x57, to, 0, value)
    }
    pub(super) fn shift_right(to: u8, bits: i32) -> Instruction {
        Instruction(0x77, to, 0, bits)
    }
    pub(super) fn skip_unless(register: u8, value: i32, over: i16) -> Instruction {
        Instruction(0x55, register, over, value)
    }
    pub(super) fn skip_if_any(register: u8, bits: i32, over: i16) -> Instruction {
        Instruction(0x45, register, over, bits)
    }
    pub(super) const EXIT: Instruction = Instruction(0x95, 0, 0, 0);
}

const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// A program of type BPF_PROG_TYPE_CGROUP_DEVICE, as the kernel takes it. Its context is `struct bpf_cgroup_dev_ctx`: kind in the
/// low and access in the high half of the first word, then major and minor.
pub(super) fn program(rules: &[DeviceRule]) -> Vec<u8> {
    let mut program = vec![
        op::load(KIND, 1, 0),
        op::copy(ACCESS, KIND),
        op::and(KIND, 0xffff),
        op::shift_right(ACCESS, 16),
        op::load(MAJOR, 1, 4),
        op::load(MINOR, 1, 8),
    ];
    for (kind, major, minor, permissions) in allowed(rules) {
        // BPF_DEVCG_DEV_BLOCK and _CHAR; BPF_DEVCG_ACC_MKNOD, _READ, _WRITE.
        let kind = if matches!(kind, DeviceType::Block) { 1 } else { 2 };
        let bits = [('m', 1), ('r', 2), ('w', 4)];
        let denied = bits.iter().filter(|(name, _)| !permissions.contains(*name)).fold(0, |all, (_, bit)| all | bit);
        let mut tests: Vec<Box<dyn Fn(i16) -> Instruction>> =
            vec![Box::new(move |over| op::skip_unless(KIND, kind, over))];
        if denied != 0 {
            tests.push(Box::new(move |over| op::skip_if_any(ACCESS, denied, over)));
        }
        for (register, number) in [(MAJOR, major), (MINOR, minor)] {
            if let Ok(number) = u32::try_from(number) {
                tests.push(Box::new(move |over| op::skip_unless(register, number as i32, over)));
            }
        }
        // A test that fails skips the ones after it, and the answer.
        let count = tests.len() as i16;
        program.extend((1..).zip(&tests).map(|(done, test)| test(count - done + 2)));
        program.extend([op::set(0, 1), op::EXIT]);
    }
    program.extend([op::set(0, 0), op::EXIT]);
    let bytes = |Instruction(code, registers, offset, immediate): Instruction| {
        let mut bytes = vec![code, registers];
        bytes.extend(offset.to_ne_bytes());
        bytes.extend(immediate.to_ne_bytes());
        bytes
    };
    program.into_iter().flat_map(bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer: enough of an interpreter for the instructions above.
    fn run(program: &[u8], (kind, access, major, minor): (u32, u32, u32, u32)) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let raw = &program[at * 8..at * 8 + 8];
            let (to, from) = (usize::from(raw[1] & 15), usize::from(raw[1] >> 4));
            let offset = i16::from_ne_bytes([raw[2], raw[3]]);
            let immediate = i64::from(i32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]])) as u64;
            at += 1;
            let mut skip = |condition: bool| at = if condition { at + offset as usize } else { at };
            match raw[0] {
                0x61 => registers[to] = u64::from(context[offset as usize / 4]),
                0xbf => registers[to] = registers[from],
                0xb7 => registers[to] = immediate,
                0x57 => registers[to] &= immediate,
                0x77 => registers[to] >>= immediate,
                0x55 => skip(registers[to] != immediate),
                0x45 => skip(registers[to] & immediate != 0),
                0x95 => return registers[0] == 1,
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_allows_what_the_rules_say_and_nothing_else() {
        let rule = |block, major, minor, permissions: &str| DeviceRule {
            block,
            major,
            minor,
            permissions: permissions.into(),
        };
        let program = program(&[rule(true, 8, 1, "r"), rule(false, 10, -1, "rw")]);
        let (block, char) = (1, 2);
        let (mknod, read, write) = (1, 2, 4);
        for (kind, access, major, minor, expected) in [
            (char, read | write, 1, 3, true),
            (char, read | write, 1, 1, false),
            (block, mknod, 7, 7, true),
            (char, mknod | read, 7, 7, false),
            (char, write, 136, 5, true),
            (block, read, 8, 1, true),
            (block, write, 8, 1, false),
            (block, read | write, 8, 1, false),
            (block, read, 8, 2, false),
            (char, read, 8, 1, false),
            (char, read | write, 10, 229, true),
            (char, read, 11, 229, false),
        ] {
            assert_eq!(run(&program, (kind, access, major, minor)), expected, "{kind} {access} {major}:{minor}");
        }
    }
}
