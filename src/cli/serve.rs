//! `vecmemo serve`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::ArgMatches;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::{SettingsArguments, assemble, reload, say, start_logging};
use crate::access::Access;
use crate::config::{self, Settings};
use crate::http::{self, Listeners, Reloaded, Tls, Traces};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let layered = arguments.settings.layered(matches)?;
    let mut settings = Settings::new(&layered.typed)?;
    settings.http.access = Access::new(config::access(&layered.typed)?);
    settings.http.tls = settings.tls.as_ref().map(|(certificate, key)| Tls::load(certificate, key)).transpose()?;
    start_logging(&settings)?;
    let runtime = assemble::runtime()?;
    runtime.block_on(async {
        // Taken before the model is loaded, so that a busy port is known at once.
        let listener = TcpListener::bind(settings.listen)
            .await
            .with_context(|| format!("cannot listen on {}: choose another address with --listen", settings.listen))?;
        let address = listener.local_addr().context("the listener has no address")?;
        let admin = bind_admin(settings.admin_listen).await?;
        warn_of_strangers(address, &settings.http.access);
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;

        let catalogue = tokio::task::block_in_place(|| assemble::catalogue(&settings))?;
        let traces = Traces::start(&settings.traces).context("correct otlp_endpoint, or the variables OTEL_…")?;
        settings.http.traces.clone_from(&traces);
        let (access, tls) = (settings.http.access.clone(), settings.http.tls.clone());
        let reload = reload::reload(arguments.settings.clone(), matches.clone(), catalogue.clone(), access, tls)?;
        settings.http.reload = Some(reload.clone());
        let mut hang_up = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
        tokio::spawn(async move {
            while hang_up.recv().await.is_some() {
                let reload = reload.clone();
                match tokio::task::spawn_blocking(move || reload.run()).await {
                    Ok(Ok(Reloaded { applied, restart_needed })) => {
                        tracing::info!(?applied, ?restart_needed, "read the configuration again");
                    }
                    Ok(Err(problem)) => tracing::error!(problem, "the configuration stays as it was"),
                    Err(panicked) => tracing::error!(%panicked, "the configuration stays as it was"),
                }
            }
        });
        let tier = catalogue.default().cache.tier().cloned();
        let _consumer = tier.zip(settings.events_stream).map(|(tier, stream)| {
            let catalogue = catalogue.clone();
            tier.consume(stream, Arc::new(move |fields: &[(String, Vec<u8>)]| catalogue.handle(fields)))
        });
        for model in catalogue.models() {
            let card = model.cache.card();
            tracing::info!(
                %address, model = card.name, fingerprint = %card.version, dims = card.dims, device = card.device.get().as_str(),
                data_dir = %settings.data_dir.display(), entries = model.cache.stats().store.entries,
                started_ms = started.elapsed().as_millis() as u64, "ready"
            );
        }
        let scheme = if settings.http.tls.is_some() { "https" } else { "http" };
        say(&format!(
            "vecmemo is ready: curl -s {scheme}://{address}/embed -H 'content-type: application/json' -d '{{\"inputs\": \"hello\"}}'"
        ));
        let shutdown = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            tracing::info!("shutting down: finishing accepted requests");
        };
        let listeners = Listeners { public: listener, admin };
        let served = http::serve(listeners, catalogue, settings.http, shutdown).await.context("the service failed");
        if let Some(traces) = traces {
            tokio::task::block_in_place(|| traces.stop());
        }
        served
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Where operators are served, if they have an address of their own.
async fn bind_admin(address: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address).await;
    let listener =
        listener.with_context(|| format!("cannot listen on {address}: choose another address with --admin-listen"))?;
    let address = listener.local_addr().context("the listener has no address")?;
    tracing::info!(%address, "operators are served here alone");
    Ok(Some(listener))
}

/// Whom the address lets in is said, not refused: behind a proxy that asks for keys itself, or in a network of its own, it is as meant.
fn warn_of_strangers(address: SocketAddr, access: &Access) {
    if access.is_open() && !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "no keys are set: whoever reaches this address may read, write, invalidate and administer; see [auth] in the README"
        );
    }
}
