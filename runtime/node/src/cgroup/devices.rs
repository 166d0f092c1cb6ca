//! Which devices a cgroup may use: rules of the devices controller on v1, and on v2 an eBPF program
//! that the kernel runs at every open(2) and mknod(2) of a device.

use berth_shim::spec::DeviceAccess;
use cgroups_rs::fs::{
    Cgroup, Subsystem,
    devices::{DevicePermissions, DeviceType},
};
use serde::{Deserialize, Serialize};

/// Stands for any major or minor number.
const ANY: i64 = -1;

/// What every container may do: make nodes of anything, use those of its /dev (OCI runtime
/// specification, "Default Devices"), and terminals. 5:0 is a process' own terminal and 5:2 makes
/// new ones. 5:1 is left out, since it is the host's console; /dev/console of a container is a
/// terminal of 136.
const ALLOWED: [(DeviceType, i64, i64, &str); 10] = [
    (DeviceType::Char, ANY, ANY, "m"),
    (DeviceType::Block, ANY, ANY, "m"),
    // null, zero, full, random, urandom
    (DeviceType::Char, 1, 3, "rwm"),
    (DeviceType::Char, 1, 5, "rwm"),
    (DeviceType::Char, 1, 7, "rwm"),
    (DeviceType::Char, 1, 8, "rwm"),
    (DeviceType::Char, 1, 9, "rwm"),
    // tty, ptmx, /dev/pts
    (DeviceType::Char, 5, 0, "rwm"),
    (DeviceType::Char, 5, 2, "rwm"),
    (DeviceType::Char, 136, ANY, "rwm"),
];

/// What a container may do with devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// A privileged container's.
    All,
    /// `ALLOWED` and these.
    Only(Vec<DeviceRule>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    pub block: bool,
    pub major: i64,
    pub minor: i64,
    /// Some of `r`, `w` and `m`.
    pub permissions: String,
}

impl Devices {
    /// The rules for another OCI runtime, which sets them itself.
    pub fn accesses(&self) -> Vec<DeviceAccess> {
        let Self::Only(rules) = self else { return vec![all(true)] };
        let mut accesses = vec![all(false)];
        for (kind, major, minor, access) in allowed(rules) {
            accesses.push(DeviceAccess {
                allow: true,
                kind: if kind == DeviceType::Block { "b" } else { "c" }.to_owned(),
                major: (major >= 0).then_some(major),
                minor: (minor >= 0).then_some(minor),
                access: access.to_owned(),
            });
        }
        accesses
    }
}

fn all(allow: bool) -> DeviceAccess {
    DeviceAccess { allow, kind: "a".to_owned(), major: None, minor: None, access: "rwm".to_owned() }
}

/// What is allowed in all.
fn allowed(rules: &[DeviceRule]) -> impl Iterator<Item = (DeviceType, i64, i64, &str)> {
    let asked = rules.iter().map(|DeviceRule { block, major, minor, permissions }| {
        let kind = if *block { DeviceType::Block } else { DeviceType::Char };
        (kind, *major, *minor, permissions.as_str())
    });
    ALLOWED.into_iter().chain(asked)
}

/// Writes the rules of v1.
pub(super) fn restrict(cgroup: &Cgroup, rules: &[DeviceRule]) -> anyhow::Result<()> {
    let devices = cgroup.subsystems().iter().find_map(|subsystem| match subsystem {
        Subsystem::Devices(devices) => Some(devices),
        _ => None,
    });
    let Some(devices) = devices else { return Ok(()) };
    // A new cgroup has the rules of the one above it: everything goes first.
    devices.deny_device(DeviceType::All, ANY, ANY, &DevicePermissions::all())?;
    for (kind, major, minor, permissions) in allowed(rules) {
        devices.allow_device(kind, major, minor, &DevicePermissions::from_str(permissions)?)?;
    }
    Ok(())
}

/// `struct bpf_insn` of linux/bpf.h: opcode, registers (destination in the low half), offset,
/// immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction(u8, u8, i16, i32);

/// The instructions that are needed (linux/bpf_common.h). R0 is the result, R1 the context.
mod op {
    use super::Instruction;

    /// 32 bits at an offset of a pointer.
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
    /// Skips `over` instructions unless the register has this value.
    pub(super) fn skip_unless(register: u8, value: i32, over: i16) -> Instruction {
        Instruction(0x55, register, over, value)
    }
    /// Skips `over` instructions if the register has any of these bits.
    pub(super) fn skip_if_any(register: u8, bits: i32, over: i16) -> Instruction {
        Instruction(0x45, register, over, bits)
    }
    pub(super) const EXIT: Instruction = Instruction(0x95, 0, 0, 0);
}

/// The registers that the program keeps its context in.
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// BPF_DEVCG_DEV_BLOCK and BPF_DEVCG_DEV_CHAR.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;
/// BPF_DEVCG_ACC_MKNOD, BPF_DEVCG_ACC_READ and BPF_DEVCG_ACC_WRITE.
const ACCESS_BITS: [(char, i32); 3] = [('m', 1), ('r', 2), ('w', 4)];

/// A test that a rule makes, for the number of instructions to skip if it fails.
type Test = Box<dyn Fn(i16) -> Instruction>;

/// A program of type BPF_PROG_TYPE_CGROUP_DEVICE, as bpf(2) takes it: it allows what the first
/// matching rule allows and denies the rest.
///
/// Its context is `struct bpf_cgroup_dev_ctx`: the kind of the device in the low and the access in
/// the high half of the first word, then major and minor number.
pub(super) fn program(rules: &[DeviceRule]) -> Vec<u8> {
    let mut program = vec![
        op::load(KIND, 1, 0),
        op::copy(ACCESS, KIND),
        op::and(KIND, 0xffff),
        op::shift_right(ACCESS, 16),
        op::load(MAJOR, 1, 4),
        op::load(MINOR, 1, 8),
    ];
    for rule in allowed(rules) {
        let tests = tests_of(rule);
        // A test that fails skips those after it and the two instructions that allow.
        let count = tests.len() as i16;
        program.extend((1..).zip(&tests).map(|(done, test)| test(count - done + 2)));
        program.extend([op::set(0, 1), op::EXIT]);
    }
    program.extend([op::set(0, 0), op::EXIT]);
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for Instruction(opcode, registers, offset, immediate) in program {
        bytes.extend([opcode, registers]);
        bytes.extend(offset.to_ne_bytes());
        bytes.extend(immediate.to_ne_bytes());
    }
    bytes
}

fn tests_of((kind, major, minor, permissions): (DeviceType, i64, i64, &str)) -> Vec<Test> {
    let kind = if matches!(kind, DeviceType::Block) { BLOCK } else { CHAR };
    let mut tests: Vec<Test> = vec![Box::new(move |over| op::skip_unless(KIND, kind, over))];
    let denied = ACCESS_BITS.iter().filter(|(name, _)| !permissions.contains(*name));
    let denied = denied.fold(0, |all, (_, bit)| all | bit);
    // The kernel asks for all bits of an open at once, so one that is denied is enough.
    if denied != 0 {
        tests.push(Box::new(move |over| op::skip_if_any(ACCESS, denied, over)));
    }
    for (register, number) in [(MAJOR, major), (MINOR, minor)] {
        // `ANY` is not one, and needs no test.
        if let Ok(number) = u32::try_from(number) {
            tests.push(Box::new(move |over| op::skip_unless(register, number as i32, over)));
        }
    }
    tests
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would decide: enough of an interpreter for the instructions above.
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
    fn another_runtime_is_told_the_same_devices() {
        let rule = DeviceRule { block: true, major: 8, minor: -1, permissions: "r".into() };
        let accesses = Devices::Only(vec![rule]).accesses();
        assert!(!accesses[0].allow && accesses[0].kind == "a", "{accesses:?}");
        let minors = |major| {
            let of_major = accesses.iter().filter(move |access| access.major == Some(major));
            of_major
                .map(|access| (access.kind.as_str(), access.minor, access.access.as_str()))
                .collect::<Vec<_>>()
        };
        assert_eq!(minors(5), [("c", Some(0), "rwm"), ("c", Some(2), "rwm")]);
        assert_eq!(minors(8), [("b", None, "r")]);
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
            (char, read | write, 5, 0, true),
            (char, read | write, 5, 1, false),
            (char, mknod, 5, 1, true),
            (char, read | write, 5, 2, true),
            (char, write, 5, 3, false),
            (block, read, 8, 1, true),
            (block, write, 8, 1, false),
            (block, read | write, 8, 1, false),
            (block, read, 8, 2, false),
            (char, read, 8, 1, false),
            (char, read | write, 10, 229, true),
            (char, read, 11, 229, false),
        ] {
            assert_eq!(
                run(&program, (kind, access, major, minor)),
                expected,
                "{kind} {access} {major}:{minor}"
            );
        }
    }
}
