variable "name" {
  description = "Begins the names of the policies; unique in the account."
  type        = string
  default     = "headwater"
}

variable "bucket_name" {
  description = "The bucket's name. Null lets AWS choose one that begins with `name`."
  type        = string
  default     = null
}

variable "github_repository" {
  description = "The repository whose workflows publish, as owner/name. Empty for no role; attach the policy to one of your own."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^$|^[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "github_repository must be owner/name, or empty."
  }
}

variable "github_ref" {
  description = "The one ref whose workflows may publish."
  type        = string
  default     = "refs/heads/main"

  validation {
    condition     = can(regex("^refs/(heads|tags)/[A-Za-z0-9._/-]+$", var.github_ref))
    error_message = "github_ref must be one branch or tag, such as refs/heads/main."
  }
}

variable "github_provider_arn" {
  description = "GitHub's OIDC provider, if this account has it already (an account can have only one). Empty creates it."
  type        = string
  default     = ""
}

variable "domain_name" {
  description = "A domain name of your own for the distribution. Empty for CloudFront's."
  type        = string
  default     = ""
}

variable "certificate_arn" {
  description = "The certificate for domain_name, in us-east-1."
  type        = string
  default     = ""
}

variable "allowed_origin" {
  description = "The origin whose web pages may read the data (CORS)."
  type        = string
  default     = "*"
}

variable "noncurrent_days" {
  description = "Days for which overwritten and deleted objects can be brought back."
  type        = number
  default     = 7

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "noncurrent_days must be at least 1."
  }
}
