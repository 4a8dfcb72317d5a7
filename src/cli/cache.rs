//! `vecmemo cache`: a running server's switch.

use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::json;

use super::client::Client;

const PATH: &str = "/admin/cache";

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// What to do
    #[arg(value_name = "WHAT")]
    action: Action,

    /// The running server, such as http://127.0.0.1:8080
    #[arg(long, value_name = "URL")]
    url: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Action {
    /// Read and store again
    On,
    /// Compute everything, read and store nothing
    Off,
    /// Say which it is
    Status,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let client = Client::new(&arguments.url);
    let answer = match arguments.action {
        Action::On => client.put_json(PATH, &json!({ "enabled": true }))?,
        Action::Off => client.put_json(PATH, &json!({ "enabled": false }))?,
        Action::Status => client.get_json(PATH)?,
    };
    super::print(if answer["enabled"] == json!(true) { "on" } else { "off" })?;
    Ok(ExitCode::SUCCESS)
}
