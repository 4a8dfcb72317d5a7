//! Keys and tenants' limits, as meant.

use std::sync::Arc;

use super::{ConfigError, Typed, TypedTenant, not};
use crate::access::{Keys, Limits, Rules};
use crate::domain::{Namespace, Tenant};

/// Reads the keys that the settings name, and what tenants may have. No keys at all: everybody may do everything.
///
/// # Errors
/// When the file of keys cannot be read, or a key makes no sense.
pub fn access(typed: &Typed) -> Result<Rules, ConfigError> {
    let auth = &typed.auth;
    let names = auth.public_namespaces.iter().flatten();
    let public: Result<Vec<Namespace>, _> = names.map(|name| Namespace::new(name)).collect();
    let public = public.map_err(|error| ConfigError::Keys {
        place: "auth.public_namespaces".to_owned(),
        problem: error.to_string(),
    })?;
    let mut keys = Keys::default();
    if let Some(path) = &auth.keys_file {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let of_file = |error: crate::access::KeysError| ConfigError::Keys {
            place: format!("the file of keys {}", path.display()),
            problem: error.to_string(),
        };
        keys = Keys::parse(&text, &Arc::from(public)).map_err(of_file)?;
        if keys.is_empty() {
            return Err(not(
                "auth.keys_file",
                path.display(),
                "a file without a key would open the service to everybody",
            ));
        }
    }
    if let Some(token) = auth.api_key.as_deref().filter(|token| !token.is_empty()) {
        keys = keys
            .with_single(token)
            .map_err(|error| ConfigError::Keys { place: "auth.api_key".to_owned(), problem: error.to_string() })?;
    }
    let limits = typed
        .tenants
        .iter()
        .map(|(name, limits)| -> Result<_, ConfigError> { Ok((name.clone(), limits_of(name, limits)?)) });
    Ok(Rules { keys, limits: limits.collect::<Result<_, _>>()? })
}

fn limits_of(name: &str, typed: &TypedTenant) -> Result<Limits, ConfigError> {
    let TypedTenant { requests_per_second, tokens_per_second, entries_max, bytes_max, namespaces_max } = *typed;
    let refuse = |problem: String| ConfigError::Keys { place: format!("the tenant {name}"), problem };
    Tenant::new(name).map_err(|error| refuse(error.to_string()))?;
    let limits = [
        ("requests_per_second", requests_per_second),
        ("tokens_per_second", tokens_per_second),
        ("entries_max", entries_max),
        ("bytes_max", bytes_max),
        ("namespaces_max", namespaces_max),
    ];
    match limits.into_iter().find(|(_, limit)| *limit == Some(0)) {
        Some((limit, _)) => Err(refuse(format!("{limit} cannot be 0: at least 1, or not set"))),
        None => Ok(Limits { requests_per_second, tokens_per_second, entries_max, bytes_max, namespaces_max }),
    }
}
