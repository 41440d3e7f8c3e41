//! Entry point of the `fedllm-server` program; everything is in the library.

fn main() -> std::process::ExitCode {
    // A process that was started to look at the GPUs does only that.
    if let Some(code) = fedllm_models::device::probe::child_entry() {
        return code;
    }
    fedllm_server::cli::run(std::env::args_os())
}
