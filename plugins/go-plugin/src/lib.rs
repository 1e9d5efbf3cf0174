//! HashiCorp's plugin protocol over tonic: be a plugin, or host one
