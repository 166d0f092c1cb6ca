//! Compiles policies to classic BPF, the program that the kernel runs before every system call.
//!
//! There are two jumps: a conditional one whose distances are single bytes, and JUMP with 32 bits.
//! Both lead forward only, so that every block is compiled before the jump over it.

use std::collections::BTreeMap;

use berth_base::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A table of system calls that programs on this machine can use.
#[derive(Debug)]
pub(super) struct Arch {
    /// Its name in profiles (libseccomp's).
    pub name: &'static str,
    /// AUDIT_ARCH_* of linux/audit.h.
    pub audit: u32,
    /// The number of a call, where this table has it.
    pub number: fn(&str) -> Option<u32>,
    /// The highest number that is known here.
    pub newest: fn() -> u32,
}

macro_rules! arch {
    ($name:literal, $audit:literal, $table:ident) => {
        Arch {
            name: $name,
            audit: $audit,
            number: |name| {
                name.parse::<syscalls::$table::Sysno>().ok().map(|number| number.id() as u32)
            },
            newest: || {
                syscalls::$table::Sysno::iter().map(|number| number.id() as u32).max().unwrap_or(0)
            },
        }
    };
}

/// The machine's own table, then that of 32-bit programs.
#[cfg(target_arch = "x86_64")]
pub(super) const ARCHES: [Arch; 2] =
    [arch!("SCMP_ARCH_X86_64", 0xc000_003e, x86_64), arch!("SCMP_ARCH_X86", 0x4000_0003, x86)];
#[cfg(target_arch = "aarch64")]
pub(super) const ARCHES: [Arch; 2] =
    [arch!("SCMP_ARCH_AARCH64", 0xc000_00b7, aarch64), arch!("SCMP_ARCH_ARM", 0x4000_0028, arm)];
/// The bit in the number of an x32 call, which is x86-64's second table of calls. A filter that
/// ignores the bit can be bypassed by it (seccomp(2), "Caveats"), so all of them are refused.
pub(super) const X32: u32 = 0x4000_0000;

// Classic BPF (linux/bpf_common.h), and what a filter returns (SECCOMP_RET_* of linux/seccomp.h).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
pub(super) const ALLOW: u32 = 0x7fff_0000;
pub(super) const ERRNO: u32 = 0x0005_0000;
pub(super) const EPERM: u32 = 1;
pub(super) const ENOSYS: u32 = 38;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// The kernel's limit (BPF_MAXINSNS).
const MAX_PROGRAM: usize = 4096;

/// The operators of the OCI runtime specification (config-linux, "Seccomp").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    on_true: u8,
    on_false: u8,
    value: u32,
}

/// What a filter is compiled from. The first rule of a call whose conditions all hold decides, and
/// the default where none does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub default: u32,
    /// For calls with a higher number than any that is known here.
    pub unknown: u32,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Names of system calls. Those that an architecture does not have are ignored there.
    pub names: Vec<String>,
    pub conditions: Vec<Condition>,
    /// SECCOMP_RET_*, with its data.
    pub return_value: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub argument: u32,
    pub operator: Operator,
    pub value: u64,
    /// What the argument has to be after masking, where `value` is a mask.
    pub masked: u64,
}

/// The program as `struct sock_filter[]`, eight bytes an instruction.
pub(super) fn bytes(program: &[Instruction]) -> Vec<u8> {
    program.iter().flat_map(encode).collect()
}

fn encode(instruction: &Instruction) -> [u8; 8] {
    let [a, b] = instruction.code.to_ne_bytes();
    let [c, d, e, f] = instruction.value.to_ne_bytes();
    [a, b, instruction.on_true, instruction.on_false, c, d, e, f]
}

fn one(code: u16, value: u32) -> Instruction {
    Instruction { code, on_true: 0, on_false: 0, value }
}

fn jump(code: u16, value: u32, on_true: usize, on_false: usize) -> Instruction {
    // The distances are within a single condition, and fit a byte. Longer ones are left to JUMP.
    Instruction { code, on_true: on_true as u8, on_false: on_false as u8, value }
}

/// Compiles `policy` for `arches`. Calls of any other architecture fail with ENOSYS.
///
/// # Errors
/// `InvalidArgument` if the program is longer than the kernel accepts.
pub(super) fn compile(policy: &Policy, arches: &[&Arch]) -> Result<Vec<Instruction>> {
    let mut program = vec![one(LOAD, ARCH)];
    // Numbers mean different calls in each table, so the architecture is compared first.
    for arch in arches {
        let block = for_arch(policy, arch);
        program.extend([jump(JUMP_EQUAL, arch.audit, 1, 0), one(JUMP, block.len() as u32)]);
        program.extend(block);
    }
    program.push(one(RETURN, ERRNO | ENOSYS));
    if program.len() > MAX_PROGRAM {
        return Err(Error::invalid(format!(
            "the profile compiles to {} instructions, and the kernel accepts {MAX_PROGRAM}",
            program.len()
        )));
    }
    Ok(program)
}

fn for_arch(policy: &Policy, arch: &Arch) -> Vec<Instruction> {
    let mut program = vec![one(LOAD, NUMBER)];
    // No other architecture has numbers that large, so that this does no harm there.
    program.extend([jump(JUMP_GREATER_OR_EQUAL, X32, 0, 1), one(RETURN, ERRNO | ENOSYS)]);
    program.extend([
        jump(JUMP_GREATER_OR_EQUAL, (arch.newest)() + 1, 0, 1),
        one(RETURN, policy.unknown),
    ]);
    // Rules with conditions each get a block of their own. The others, which are nearly all, become
    // comparisons with ranges of numbers below.
    let mut by_number: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in &policy.rules {
        let numbers = rule.names.iter().filter_map(|name| (arch.number)(name));
        numbers.for_each(|number| by_number.entry(number).or_default().push(rule));
    }
    let mut plain: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (number, rules) in by_number {
        match rules[0] {
            Rule { conditions, return_value, .. } if conditions.is_empty() => {
                plain.entry(*return_value).or_default().push(number)
            }
            _ => {
                let block = decide(&rules, policy.default);
                program.extend([jump(JUMP_EQUAL, number, 1, 0), one(JUMP, block.len() as u32)]);
                program.extend(block);
            }
        }
    }
    for (return_value, numbers) in plain {
        for (first, last) in ranges(&numbers) {
            let below = jump(JUMP_GREATER_OR_EQUAL, first, 0, 2);
            program.extend([
                below,
                jump(JUMP_GREATER_OR_EQUAL, last + 1, 1, 0),
                one(RETURN, return_value),
            ]);
        }
    }
    program.push(one(RETURN, policy.default));
    program
}

/// The rules of one call in their order, then `default`.
fn decide(rules: &[&Rule], default: u32) -> Vec<Instruction> {
    let mut block = Vec::new();
    for rule in rules {
        let conditions: Vec<Vec<Instruction>> =
            rule.conditions.iter().map(|condition| test(*condition)).collect();
        // A condition that holds skips the JUMP after it, to the next condition. One that does not
        // takes that JUMP, over the rest of this rule.
        let mut left: usize = conditions.iter().map(|condition| condition.len() + 1).sum();
        for condition in conditions {
            left -= condition.len() + 1;
            block.extend(condition);
            block.push(one(JUMP, left as u32 + 1));
        }
        block.push(one(RETURN, rule.return_value));
    }
    block.push(one(RETURN, default));
    block
}

/// Instructions that skip the one after them when the condition holds. BPF compares 32 bits, so an
/// argument is compared as two halves, the high one first.
fn test(condition: Condition) -> Vec<Instruction> {
    let Condition { argument, operator, value, masked } = condition;
    // Little endian, as both architectures are.
    let low = ARGUMENTS + argument * 8;
    let high = low + 4;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    // Where a test leads, as positions in it: to the instruction right after it, or to the one
    // after that. Three operators are the negation of another, with the two exchanged.
    let negated = matches!(operator, Operator::NotEqual | Operator::Less | Operator::LessOrEqual);
    let ways = |length: usize| if negated { (length, length + 1) } else { (length + 1, length) };
    match operator {
        Operator::Equal | Operator::NotEqual | Operator::MaskedEqual => {
            // Without a mask, all bits are compared.
            let (mask, wanted) =
                if operator == Operator::MaskedEqual { (value, masked) } else { (u64::MAX, value) };
            let (high_mask, low_mask) = halves(mask);
            let (high_wanted, low_wanted) = halves(wanted);
            let (yes, no) = ways(6);
            vec![
                one(LOAD, high),
                one(AND, high_mask),
                jump(JUMP_EQUAL, high_wanted, 0, no - 3),
                one(LOAD, low),
                one(AND, low_mask),
                jump(JUMP_EQUAL, low_wanted, yes - 6, no - 6),
            ]
        }
        Operator::Greater | Operator::LessOrEqual | Operator::GreaterOrEqual | Operator::Less => {
            let strict = matches!(operator, Operator::Greater | Operator::LessOrEqual);
            let code = if strict { JUMP_GREATER } else { JUMP_GREATER_OR_EQUAL };
            let (high_value, low_value) = halves(value);
            let (yes, no) = ways(5);
            vec![
                one(LOAD, high),
                jump(JUMP_GREATER, high_value, yes - 2, 0),
                // The high halves are equal, so the low ones decide.
                jump(JUMP_EQUAL, high_value, 0, no - 3),
                one(LOAD, low),
                jump(code, low_value, yes - 5, no - 5),
            ]
        }
    }
}

/// Runs of consecutive numbers, each with its first and its last. They take far fewer comparisons
/// than single numbers, and a filter runs at every system call.
fn ranges(sorted: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    ranges
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the kernel would do, for the instructions that `compile` uses.
    pub(in super::super) fn run(
        program: &[Instruction],
        number: u32,
        arguments: [u64; 6],
        arch: u32,
    ) -> u32 {
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let Instruction { code, on_true, on_false, value } = program[at];
            let jump = |holds: bool| usize::from(if holds { on_true } else { on_false });
            at += 1 + match code {
                LOAD => {
                    accumulator = match value {
                        NUMBER => number,
                        ARCH => arch,
                        offset => {
                            let argument = arguments[(offset - ARGUMENTS) as usize / 8];
                            if offset % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 }
                        }
                    };
                    0
                }
                AND => {
                    accumulator &= value;
                    0
                }
                JUMP => value as usize,
                JUMP_EQUAL => jump(accumulator == value),
                JUMP_GREATER => jump(accumulator > value),
                JUMP_GREATER_OR_EQUAL => jump(accumulator >= value),
                RETURN => return value,
                other => panic!("instruction {other:#x}"),
            };
        }
    }
}
