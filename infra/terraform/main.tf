# The same as ../cloudformation/headwater.yaml: a private bucket, CloudFront in front of it, a role for the publisher.

locals {
  has_domain       = var.domain_name != ""
  has_repository   = var.github_repository != ""
  creates_provider = local.has_repository && var.github_provider_arn == ""
  provider_arn     = local.creates_provider ? aws_iam_openid_connect_provider.github[0].arn : var.github_provider_arn
  allowed_methods  = ["GET", "HEAD", "OPTIONS"]
  cached_methods   = ["GET", "HEAD"]
}

resource "aws_s3_bucket" "datasets" {
  bucket        = var.bucket_name
  bucket_prefix = var.bucket_name == null ? "${var.name}-" : null

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_public_access_block" "datasets" {
  bucket                  = aws_s3_bucket.datasets.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "datasets" {
  bucket = aws_s3_bucket.datasets.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "datasets" {
  bucket = aws_s3_bucket.datasets.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_versioning" "datasets" {
  bucket = aws_s3_bucket.datasets.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "datasets" {
  bucket     = aws_s3_bucket.datasets.id
  depends_on = [aws_s3_bucket_versioning.datasets]

  rule {
    id     = "abort-multipart"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }

  rule {
    id     = "expire-noncurrent"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }

    expiration {
      expired_object_delete_marker = true
    }
  }
}

# S3 answers preflight requests; the headers of other answers come from CloudFront.
resource "aws_s3_bucket_cors_configuration" "datasets" {
  bucket = aws_s3_bucket.datasets.id

  cors_rule {
    allowed_origins = [var.allowed_origin]
    allowed_methods = ["GET", "HEAD"]
    allowed_headers = ["*"]
    expose_headers  = ["ETag"]
    max_age_seconds = 86400
  }
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "OnlyTls"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.datasets.arn, "${aws_s3_bucket.datasets.arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }

  statement {
    sid       = "CloudFrontReads"
    effect    = "Allow"
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.datasets.arn}/*"]

    principals {
      type        = "Service"
      identifiers = ["cloudfront.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "AWS:SourceArn"
      values   = [aws_cloudfront_distribution.datasets.arn]
    }
  }

  # Without it S3 answers 403 for a missing key. Nothing can be listed through CloudFront: "/" is the root object.
  statement {
    sid       = "MissingKeysAre404"
    effect    = "Allow"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.datasets.arn]

    principals {
      type        = "Service"
      identifiers = ["cloudfront.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "AWS:SourceArn"
      values   = [aws_cloudfront_distribution.datasets.arn]
    }
  }
}

resource "aws_s3_bucket_policy" "datasets" {
  bucket     = aws_s3_bucket.datasets.id
  policy     = data.aws_iam_policy_document.bucket.json
  depends_on = [aws_s3_bucket_public_access_block.datasets]
}

resource "aws_cloudfront_origin_access_control" "datasets" {
  name                              = "${var.name}-origin"
  origin_access_control_origin_type = "s3"
  signing_behavior                  = "always"
  signing_protocol                  = "sigv4"
}

# Files named by their content never change, also where a copy of them came without Cache-Control.
resource "aws_cloudfront_cache_policy" "immutable" {
  name        = "${var.name}-immutable"
  min_ttl     = 0
  default_ttl = 31536000
  max_ttl     = 31536000

  parameters_in_cache_key_and_forwarded_to_origin {
    enable_accept_encoding_gzip   = false
    enable_accept_encoding_brotli = false

    headers_config {
      header_behavior = "none"
    }

    cookies_config {
      cookie_behavior = "none"
    }

    query_strings_config {
      query_string_behavior = "none"
    }
  }
}

# HEAD for as long as its Cache-Control says. The maximum also bounds stale-if-error (3600), and keeps heads/ and trust/,
# whose names do not follow from their content, for an hour only: a dataset that is made anew is not masked by the old one.
resource "aws_cloudfront_cache_policy" "head" {
  name        = "${var.name}-head"
  min_ttl     = 0
  default_ttl = 5
  max_ttl     = 3600

  parameters_in_cache_key_and_forwarded_to_origin {
    enable_accept_encoding_gzip   = false
    enable_accept_encoding_brotli = false

    headers_config {
      header_behavior = "none"
    }

    cookies_config {
      cookie_behavior = "none"
    }

    query_strings_config {
      query_string_behavior = "none"
    }
  }
}

resource "aws_cloudfront_response_headers_policy" "cors" {
  name = "${var.name}-cors"

  cors_config {
    access_control_allow_credentials = false
    access_control_max_age_sec       = 86400
    origin_override                  = true

    access_control_allow_headers {
      items = ["*"]
    }

    access_control_allow_methods {
      items = ["GET", "HEAD"]
    }

    access_control_allow_origins {
      items = [var.allowed_origin]
    }

    access_control_expose_headers {
      items = ["ETag"]
    }
  }
}

data "aws_cloudfront_origin_request_policy" "cors" {
  name = "Managed-CORS-S3Origin"
}

resource "aws_cloudfront_distribution" "datasets" {
  comment             = "headwater datasets (${var.name})"
  enabled             = true
  http_version        = "http2and3"
  is_ipv6_enabled     = true
  default_root_object = "HEAD"
  aliases             = local.has_domain ? [var.domain_name] : []

  viewer_certificate {
    cloudfront_default_certificate = !local.has_domain
    acm_certificate_arn            = local.has_domain ? var.certificate_arn : null
    ssl_support_method             = local.has_domain ? "sni-only" : null
    minimum_protocol_version       = local.has_domain ? "TLSv1.2_2021" : null
  }

  restrictions {
    geo_restriction {
      restriction_type = "none"
    }
  }

  origin {
    origin_id                = "bucket"
    domain_name              = aws_s3_bucket.datasets.bucket_regional_domain_name
    origin_access_control_id = aws_cloudfront_origin_access_control.datasets.id
  }

  # HEAD, heads/, trust/: what can change, or could.
  default_cache_behavior {
    target_origin_id           = "bucket"
    viewer_protocol_policy     = "redirect-to-https"
    allowed_methods            = local.allowed_methods
    cached_methods             = local.cached_methods
    compress                   = false
    cache_policy_id            = aws_cloudfront_cache_policy.head.id
    origin_request_policy_id   = data.aws_cloudfront_origin_request_policy.cors.id
    response_headers_policy_id = aws_cloudfront_response_headers_policy.cors.id
  }

  # chunks/ and diffs/ of every dataset in the bucket.
  ordered_cache_behavior {
    path_pattern               = "*.zst"
    target_origin_id           = "bucket"
    viewer_protocol_policy     = "redirect-to-https"
    allowed_methods            = local.allowed_methods
    cached_methods             = local.cached_methods
    compress                   = false
    cache_policy_id            = aws_cloudfront_cache_policy.immutable.id
    origin_request_policy_id   = data.aws_cloudfront_origin_request_policy.cors.id
    response_headers_policy_id = aws_cloudfront_response_headers_policy.cors.id
  }

  # CloudFront keeps errors for 10 seconds unless told otherwise: a file may appear in the next one.
  custom_error_response {
    error_code            = 403
    error_caching_min_ttl = 1
  }

  custom_error_response {
    error_code            = 404
    error_caching_min_ttl = 1
  }

  custom_error_response {
    error_code            = 500
    error_caching_min_ttl = 1
  }

  custom_error_response {
    error_code            = 502
    error_caching_min_ttl = 1
  }

  custom_error_response {
    error_code            = 503
    error_caching_min_ttl = 1
  }

  custom_error_response {
    error_code            = 504
    error_caching_min_ttl = 1
  }

  lifecycle {
    precondition {
      condition     = !local.has_domain || var.certificate_arn != ""
      error_message = "domain_name needs a certificate_arn."
    }
  }
}

# No s3:DeleteObjectVersion: whoever publishes cannot destroy what versioning keeps.
data "aws_iam_policy_document" "publisher" {
  statement {
    sid       = "Objects"
    effect    = "Allow"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    resources = ["${aws_s3_bucket.datasets.arn}/*"]
  }

  # Garbage collection lists; and without it a missing HEAD is a 403, so no dataset could be created.
  # Bound to a prefix, it would not cover the latter.
  statement {
    sid       = "Bucket"
    effect    = "Allow"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.datasets.arn]
  }
}

resource "aws_iam_policy" "publisher" {
  name_prefix = "${var.name}-publisher-"
  description = "Publish headwater datasets to one bucket."
  policy      = data.aws_iam_policy_document.publisher.json
}

resource "aws_iam_openid_connect_provider" "github" {
  count = local.creates_provider ? 1 : 0

  url            = "https://token.actions.githubusercontent.com"
  client_id_list = ["sts.amazonaws.com"]
}

data "aws_iam_policy_document" "github" {
  count = local.has_repository ? 1 : 0

  statement {
    effect  = "Allow"
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [local.provider_arn]
    }

    condition {
      test     = "StringEquals"
      variable = "token.actions.githubusercontent.com:aud"
      values   = ["sts.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "token.actions.githubusercontent.com:sub"
      values   = ["repo:${var.github_repository}:ref:${var.github_ref}"]
    }
  }
}

resource "aws_iam_role" "publisher" {
  count = local.has_repository ? 1 : 0

  name_prefix          = "${var.name}-publisher-"
  description          = "Assumed by GitHub workflows that publish headwater datasets."
  max_session_duration = 3600
  assume_role_policy   = data.aws_iam_policy_document.github[0].json
}

resource "aws_iam_role_policy_attachment" "publisher" {
  count = local.has_repository ? 1 : 0

  role       = aws_iam_role.publisher[0].name
  policy_arn = aws_iam_policy.publisher.arn
}
