//! See the library.

fn main() -> std::process::ExitCode {
    berthd::main()
}
