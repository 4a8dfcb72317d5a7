//! Keys and tenants, as meant.

use std::sync::Arc;

use super::{ConfigError, Typed, not};
use crate::access::Keys;
use crate::domain::Namespace;

/// Reads the keys that the settings name. None at all: everybody may do everything.
///
/// # Errors
/// When the file of keys cannot be read, or a key makes no sense.
pub fn access(typed: &Typed) -> Result<Keys, ConfigError> {
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
    Ok(keys)
}
