//! The Bucket port over the AWS SDK: credentials, retries, conditional puts
