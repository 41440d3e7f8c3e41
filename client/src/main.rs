//! Entry point of the `fedllm-client` program; everything is in the library.

fn main() -> std::process::ExitCode {
    fedllm_client::cli::run(std::env::args_os())
}
