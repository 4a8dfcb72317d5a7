//! What a route is called, and how it is to be treated, whoever handles it.

use hyper::Method;

use super::errors::Dialect;
use crate::access::Scope;

/// What a request has to have to be let in, where there are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing.
    Nothing,
    /// Any key.
    Key,
    /// A key that is good for this.
    Scope(Scope),
    /// A key for administration that is no tenant's.
    Operator,
}

impl Needs {
    /// What the key has to be good for.
    pub(super) fn scope(self) -> Option<Scope> {
        match self {
            Self::Nothing | Self::Key => None,
            Self::Scope(scope) => Some(scope),
            Self::Operator => Some(Scope::Admin),
        }
    }
}

/// A route as metrics and logs name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Embed,
    Root,
    Embeddings,
    Models,
    Tokenize,
    Lookup,
    Search,
    Similar,
    Entries,
    Invalidate,
    Erase,
    Erasure,
    Events,
    Reload,
    Switch,
    Migrations,
    Migration,
    MigrationTexts,
    Alias,
    Model,
    Stats,
    Info,
    Health,
    Ready,
    Metrics,
    OpenApi,
    /// The page for operators, and the files it is made of.
    Page,
    /// Paths and methods that there are none of.
    Unknown,
}

impl Route {
    /// Every route, in the order of their numbers.
    pub(super) const ALL: [Self; 28] = [
        Self::Embed,
        Self::Root,
        Self::Embeddings,
        Self::Models,
        Self::Tokenize,
        Self::Lookup,
        Self::Search,
        Self::Similar,
        Self::Entries,
        Self::Invalidate,
        Self::Erase,
        Self::Erasure,
        Self::Events,
        Self::Reload,
        Self::Switch,
        Self::Migrations,
        Self::Migration,
        Self::MigrationTexts,
        Self::Alias,
        Self::Model,
        Self::Stats,
        Self::Info,
        Self::Health,
        Self::Ready,
        Self::Metrics,
        Self::OpenApi,
        Self::Page,
        Self::Unknown,
    ];

    /// The name in metrics and logs: the path, without what differs from request to request.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Embed => "/embed",
            Self::Root => "/",
            Self::Embeddings => "/v1/embeddings",
            Self::Models => "/v1/models",
            Self::Tokenize => "/tokenize",
            Self::Lookup => "/lookup",
            Self::Search => "/search",
            Self::Similar => "/similar",
            Self::Entries => "/entries/{key}",
            Self::Invalidate => "/invalidate",
            Self::Erase => "/erase",
            Self::Erasure => "/erasures/{id}",
            Self::Events => "/events",
            Self::Reload => "/admin/reload",
            Self::Switch => "/admin/cache",
            Self::Migrations => "/admin/migrations",
            Self::Migration => "/admin/migrations/{alias}",
            Self::MigrationTexts => "/admin/migrations/{alias}/texts",
            Self::Alias => "/admin/aliases/{alias}",
            Self::Model => "/admin/models/{model}",
            Self::Stats => "/stats",
            Self::Info => "/info",
            Self::Health => "/health",
            Self::Ready => "/ready",
            Self::Metrics => "/metrics",
            Self::OpenApi => "/openapi.json",
            Self::Page => "/page/{file}",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it is refused once the service is told to stop.
    pub(super) fn is_work(self) -> bool {
        matches!(
            self,
            Self::Embed
                | Self::Root
                | Self::Embeddings
                | Self::Tokenize
                | Self::Lookup
                | Self::Search
                | Self::Similar
                | Self::Invalidate
                | Self::Erase
                | Self::Events
                | Self::MigrationTexts
        )
    }
}

impl Route {
    /// Whether its answers are vectors.
    pub(super) fn is_vectors(self) -> bool {
        matches!(self, Self::Embed | Self::Root | Self::Embeddings)
    }

    /// Whether it is traced: not what is asked every few seconds by those who watch.
    pub(super) fn is_traced(self) -> bool {
        !matches!(self, Self::Health | Self::Ready | Self::Metrics | Self::Stats | Self::Page)
    }

    /// Who is let in. The one table of it; the README shows it.
    pub(super) fn needs(self, method: &Method, metrics_open: bool) -> Needs {
        match self {
            Self::Health | Self::Ready | Self::Page => Needs::Nothing,
            Self::Metrics if metrics_open => Needs::Nothing,
            Self::Models | Self::Info | Self::Stats | Self::OpenApi | Self::Unknown => Needs::Key,
            Self::Embed | Self::Root | Self::Embeddings | Self::Tokenize | Self::Lookup => Needs::Scope(Scope::Embed),
            Self::Entries if method == Method::DELETE => Needs::Scope(Scope::Invalidate),
            Self::Search | Self::Similar | Self::Entries => Needs::Scope(Scope::Search),
            Self::Invalidate | Self::Events => Needs::Scope(Scope::Invalidate),
            // What goes from the folder goes from what all have in common: the side store, the graph, receipts.
            Self::Erase | Self::Erasure => Needs::Operator,
            Self::Reload
            | Self::Switch
            | Self::Migrations
            | Self::Migration
            | Self::MigrationTexts
            | Self::Alias
            | Self::Model
            | Self::Metrics => Needs::Scope(Scope::Admin),
        }
    }

    /// Whose shape its errors have.
    pub(super) fn dialect(self, path: &str) -> Dialect {
        match self {
            Self::Embed | Self::Root | Self::Tokenize | Self::Info | Self::Health => Dialect::Tei,
            Self::Embeddings | Self::Models => Dialect::OpenAi,
            // The root's other method is theirs.
            Self::Page if path == "/" => Dialect::Tei,
            Self::Unknown if path == "/v1" || path.starts_with("/v1/") => Dialect::OpenAi,
            Self::Lookup
            | Self::Search
            | Self::Similar
            | Self::Entries
            | Self::Invalidate
            | Self::Erase
            | Self::Erasure
            | Self::Events
            | Self::Reload
            | Self::Switch
            | Self::Migrations
            | Self::Migration
            | Self::MigrationTexts
            | Self::Alias
            | Self::Model
            | Self::Stats
            | Self::Ready
            | Self::Metrics
            | Self::OpenApi
            | Self::Page
            | Self::Unknown => Dialect::Own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_index_their_metrics() {
        for (index, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, index);
        }
    }
}
