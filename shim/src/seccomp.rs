//! Loads the seccomp filter that the daemon has compiled, and makes small ones of its own. When it
//! is loaded depends on no_new_privs: see `start::credentials`.

use std::{io::Read, path::Path};

use berth_shim::{
    layout,
    record::{self, Found},
    spec::{Container, Program},
};

use crate::{
    error::{Result, Step, failure},
    sys,
};

/// Bytes of a `struct sock_filter`.
const INSTRUCTION: usize = 8;

/// Reads the filter of a container's directory; empty if its program `spec` has none. It is kept
/// in memory for execs, which cannot read it once they are inside the container.
///
/// # Errors
/// It is to have one, and the file is gone or damaged: without it the container could do what it
/// must not.
pub(crate) fn read(dir: &Path, program: &Program) -> Result<Vec<u8>> {
    // Another runtime gets the profile and makes its own filter.
    let wants =
        |container: &Container| container.process.seccomp && container.oci_runtime.is_none();
    if !matches!(program, Program::Container(container) if wants(container)) {
        return Ok(Vec::new());
    }
    let path = dir.join(layout::SECCOMP);
    let mut filter = Vec::new();
    if let Found::Record(mut file) = record::open(&path).step_on("open", &path)? {
        file.read_to_end(&mut filter).step_on("read", &path)?;
    }
    match filter.is_empty() || filter.len() % INSTRUCTION != 0 {
        true => Err(failure("missing or damaged:", &path)),
        false => Ok(filter),
    }
}

/// Loads a filter for this process and all that it forks. An empty one does nothing.
pub(crate) fn load(filter: &[u8]) -> Result<()> {
    if filter.is_empty() {
        Ok(())
    } else {
        sys::load_seccomp(filter).step("load the seccomp filter")
    }
}

/// A random number that lets the last few system calls before a program through a filter which may
/// forbid them to the program. They have it as their sixth argument, which none of them uses.
///
/// It is not in the program's memory, so to the program the filter is what the daemon has compiled.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pass(pub u64);

/// The system calls that take a pass: a process enters its PID namespace as a sibling, makes its
/// session, and takes its terminal.
const LAST_STEPS: [libc::c_long; 3] = [libc::SYS_clone3, libc::SYS_setsid, libc::SYS_ioctl];

/// As `load`, but the filter lets through whoever has the pass that is returned.
pub(crate) fn load_with_pass(filter: &[u8]) -> Result<Pass> {
    if filter.is_empty() {
        return Ok(Pass::default());
    }
    let pass = sys::random().step("getrandom")?;
    // The kernel refuses a damaged one (EINVAL), so the error names its file.
    sys::load_seccomp(&[pass_filter(pass).as_slice(), filter].concat())
        .step_on("load the seccomp filter of", layout::SECCOMP)?;
    Ok(Pass(pass))
}

/// The instructions that allow `LAST_STEPS` with `pass`. All other calls go on with the
/// instructions behind them.
fn pass_filter(pass: u64) -> Vec<u8> {
    let (low, high) =
        if cfg!(target_endian = "little") { (SIXTH, SIXTH + 4) } else { (SIXTH + 4, SIXTH) };
    let check = [
        load_word(low),
        when(pass as u32, 0, 3),
        load_word(high),
        when((pass >> 32) as u32, 0, 1),
        ret(libc::SECCOMP_RET_ALLOW),
    ];
    let mut filter = vec![load_word(NUMBER)];
    for (left, number) in (0..LAST_STEPS.len() as u8).rev().zip(LAST_STEPS) {
        // Each comparison that succeeds jumps over those that are left, to the check of the pass.
        // If the last one fails, it jumps over that check.
        filter.push(when(number as u32, left, if left == 0 { check.len() as u8 } else { 0 }));
    }
    filter.extend(check);
    filter.concat()
}

/// A filter under which every system call but those in `allowed` fails with EPERM, for a process
/// whose code is berth's own.
pub(crate) fn only(allowed: &[libc::c_long]) -> Vec<u8> {
    let mut filter =
        vec![load_word(ARCHITECTURE), when(NATIVE, 1, 0), ret(REFUSE), load_word(NUMBER)];
    for number in allowed {
        filter.extend([when(*number as u32, 0, 1), ret(libc::SECCOMP_RET_ALLOW)]);
    }
    filter.push(ret(REFUSE));
    filter.concat()
}

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const SIXTH: u32 = 16 + 5 * 8;
/// AUDIT_ARCH_* of linux/audit.h.
const NATIVE: u32 = if cfg!(target_arch = "aarch64") { 0xc000_00b7 } else { 0xc000_003e };
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

/// One `struct sock_filter`.
type Instruction = [u8; 8];

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> Instruction {
    let ([c0, c1], [k0, k1, k2, k3]) = ((code as u16).to_ne_bytes(), k.to_ne_bytes());
    [c0, c1, jt, jf, k0, k1, k2, k3]
}

/// Loads four bytes of `struct seccomp_data`.
fn load_word(offset: u32) -> Instruction {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

/// Jumps over `equal` instructions if what was loaded is `value`, otherwise over `other`.
fn when(value: u32, equal: u8, other: u8) -> Instruction {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, equal, other, value)
}

/// Ends the filter with this SECCOMP_RET_* action.
fn ret(action: u32) -> Instruction {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}
