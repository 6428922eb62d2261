//! The `phalanx` binary: arguments to `cli`, its answer to the system.

fn main() -> std::process::ExitCode {
    phalanx::cli::main()
}
