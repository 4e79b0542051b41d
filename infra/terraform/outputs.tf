output "bucket_name" {
  description = "Publish to s3://<this>/<dataset>."
  value       = aws_s3_bucket.datasets.id
}

output "public_url" {
  description = "Pull from <this>/<dataset>."
  value       = "https://${local.has_domain ? var.domain_name : aws_cloudfront_distribution.datasets.domain_name}"
}

output "distribution_id" {
  description = "For invalidations, which headwater never needs."
  value       = aws_cloudfront_distribution.datasets.id
}

output "distribution_domain_name" {
  description = "What a CNAME or alias record for domain_name points to."
  value       = aws_cloudfront_distribution.datasets.domain_name
}

output "publisher_policy_arn" {
  description = "Attach it to whatever else publishes."
  value       = aws_iam_policy.publisher.arn
}

output "publisher_role_arn" {
  description = "For aws-actions/configure-aws-credentials; null without github_repository."
  value       = local.has_repository ? aws_iam_role.publisher[0].arn : null
}
