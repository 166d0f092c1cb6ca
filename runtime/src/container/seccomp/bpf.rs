//! Policies compiled to the program that the kernel runs before every system call (classic BPF).

use std::collections::BTreeMap;

use super::Operator;
use crate::error::{Error, Result};

/// A table of system calls: programs for it run on this machine.
#[derive(Debug)]
pub(super) struct Arch {
    /// As OCI's profiles name it.
    pub name: &'static str,
    /// AUDIT_ARCH_* of linux/audit.h.
    pub audit: u32,
    pub number: fn(&str) -> Option<u32>,
    pub newest: fn() -> u32,
}

macro_rules! arch {
    ($name:literal, $audit:literal, $table:ident) => {
        Arch {
            name: $name,
            audit: $audit,
            number: |name| name.parse::<syscalls::$table::Sysno>().ok().map(|number| number.id() as u32),
            newest: || syscalls::$table::Sysno::iter().map(|number| number.id() as u32).max().unwrap_or(0),
        }
    };
}

/// The machine's own first, then that of 32-bit programs.
#[cfg(target_arch = "x86_64")]
pub(super) const ARCHES: [Arch; 2] =
    [arch!("SCMP_ARCH_X86_64", 0xc000_003e, x86_64), arch!("SCMP_ARCH_X86", 0x4000_0003, x86)];
#[cfg(target_arch = "aarch64")]
pub(super) const ARCHES: [Arch; 2] =
    [arch!("SCMP_ARCH_AARCH64", 0xc000_00b7, aarch64), arch!("SCMP_ARCH_ARM", 0x4000_0028, arm)];
/// x86-64's second table of calls, which has seen more bugs than users.
pub(super) const X32: u32 = 0x4000_0000;

// classic BPF (linux/bpf_common.h) and seccomp's answers (linux/seccomp.h)
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
pub(super) const ALLOW: u32 = 0x7fff_0000;
pub(super) const ERRNO: u32 = 0x0005_0000;
pub(super) const ENOSYS: u32 = 38;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// The kernel's limit (BPF_MAXINSNS).
const MAX_PROGRAM: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    on_true: u8,
    on_false: u8,
    value: u32,
}

/// What a filter is compiled from: the first rule whose conditions all hold answers for a call, else the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub default: u32,
    /// For calls that are newer than every name known here.
    pub unknown: u32,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Of system calls; those that a table lacks count for nothing in it.
    pub names: Vec<String>,
    pub conditions: Vec<Condition>,
    pub answer: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub argument: u32,
    pub operator: Operator,
    pub value: u64,
    /// What is compared with, where `value` is a mask.
    pub masked: u64,
}

/// As `struct sock_filter[]`.
pub(super) fn bytes(program: &[Instruction]) -> Vec<u8> {
    let bytes = |i: &Instruction| {
        let [a, b] = i.code.to_ne_bytes();
        let [c, d, e, f] = i.value.to_ne_bytes();
        [a, b, i.on_true, i.on_false, c, d, e, f]
    };
    program.iter().flat_map(bytes).collect()
}

fn one(code: u16, value: u32) -> Instruction {
    Instruction { code, on_true: 0, on_false: 0, value }
}

fn jump(code: u16, value: u32, on_true: usize, on_false: usize) -> Instruction {
    // Distances here are of single conditions; what is longer goes by JUMP.
    Instruction { code, on_true: on_true as u8, on_false: on_false as u8, value }
}

/// Calls by the tables of other architectures than `arches` are answered with ENOSYS.
pub(super) fn compile(policy: &Policy, arches: &[&Arch]) -> Result<Vec<Instruction>> {
    let mut program = vec![one(LOAD, ARCH)];
    for arch in arches {
        let block = for_arch(policy, arch);
        program.extend([jump(JUMP_EQUAL, arch.audit, 1, 0), one(JUMP, block.len() as u32)]);
        program.extend(block);
    }
    program.push(one(RETURN, ERRNO | ENOSYS));
    if program.len() > MAX_PROGRAM {
        return Err(Error::invalid(format!("{} instructions; the kernel takes {MAX_PROGRAM}", program.len())));
    }
    Ok(program)
}

fn for_arch(policy: &Policy, arch: &Arch) -> Vec<Instruction> {
    let mut program = vec![one(LOAD, NUMBER)];
    program.extend([jump(JUMP_GREATER_OR_EQUAL, X32, 0, 1), one(RETURN, ERRNO | ENOSYS)]);
    program.extend([jump(JUMP_GREATER_OR_EQUAL, (arch.newest)() + 1, 0, 1), one(RETURN, policy.unknown)]);
    let mut by_number: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in &policy.rules {
        let numbers = rule.names.iter().filter_map(|name| (arch.number)(name));
        numbers.for_each(|number| by_number.entry(number).or_default().push(rule));
    }
    let mut plain: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (number, rules) in by_number {
        match rules[0] {
            Rule { conditions, answer, .. } if conditions.is_empty() => plain.entry(*answer).or_default().push(number),
            _ => {
                let block = decide(&rules, policy.default);
                program.extend([jump(JUMP_EQUAL, number, 1, 0), one(JUMP, block.len() as u32)]);
                program.extend(block);
            }
        }
    }
    for (answer, numbers) in plain {
        for (first, last) in ranges(&numbers) {
            let below = jump(JUMP_GREATER_OR_EQUAL, first, 0, 2);
            program.extend([below, jump(JUMP_GREATER_OR_EQUAL, last + 1, 1, 0), one(RETURN, answer)]);
        }
    }
    program.push(one(RETURN, policy.default));
    program
}

/// Rules of one call in their order; what none answers, `default` does.
fn decide(rules: &[&Rule], default: u32) -> Vec<Instruction> {
    let mut block = Vec::new();
    for rule in rules {
        let conditions: Vec<Vec<Instruction>> = rule.conditions.iter().map(|condition| test(*condition)).collect();
        // Each condition ends by falling through when it holds, and by a jump of its own when not.
        let mut left: usize = conditions.iter().map(|condition| condition.len() + 1).sum();
        for condition in conditions {
            left -= condition.len() + 1;
            block.extend(condition);
            block.push(one(JUMP, left as u32 + 1));
        }
        block.push(one(RETURN, rule.answer));
    }
    block.push(one(RETURN, default));
    block
}

/// Skips the instruction after it when the condition holds. Arguments are compared as two halves, the high one first.
fn test(condition: Condition) -> Vec<Instruction> {
    let Condition { argument, operator, value, masked } = condition;
    let (high, low) = (ARGUMENTS + argument * 8 + 4, ARGUMENTS + argument * 8);
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    // The two ways out, as positions: the instruction after the test, and the one after that. Three operators are the others'
    // opposites, with the ways out exchanged.
    let negated = matches!(operator, Operator::NotEqual | Operator::Less | Operator::LessOrEqual);
    let ways = |length: usize| if negated { (length, length + 1) } else { (length + 1, length) };
    match operator {
        Operator::Equal | Operator::NotEqual | Operator::MaskedEqual => {
            let (mask, wanted) = if operator == Operator::MaskedEqual { (value, masked) } else { (u64::MAX, value) };
            let ((high_mask, low_mask), (high_wanted, low_wanted)) = (halves(mask), halves(wanted));
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
                jump(JUMP_EQUAL, high_value, 0, no - 3),
                one(LOAD, low),
                jump(code, low_value, yes - 5, no - 5),
            ]
        }
    }
}

/// Runs of numbers, first and last: far fewer comparisons than numbers.
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
    pub(in super::super) fn run(program: &[Instruction], number: u32, arguments: [u64; 6], arch: u32) -> u32 {
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
