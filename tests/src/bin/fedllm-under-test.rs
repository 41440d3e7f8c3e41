//! Both programs as one, for tests that start real processes: `fedllm-server`, and behind its
//! `client` subcommand `fedllm-client`.

fn main() -> std::process::ExitCode {
    // A process that was started to look at the GPUs does only that.
    if let Some(code) = fedllm_models::device::probe::child_entry() {
        return code;
    }
    fedllm_server::cli::run(std::env::args_os())
}
